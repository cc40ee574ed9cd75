"""Many simulated machines behind a balancer: `fleet.py`, its loop `kernel.py`, its `file.py`."""
