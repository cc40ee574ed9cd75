"""An open-loop client of any KServe v2 server: `client.py`; its sending processes: `process.py`."""
