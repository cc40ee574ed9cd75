"""A model small enough for a verb of a test, on two workers.

Which runtime is best is measured in `test_results.py`, not for each of these.
"""

SMALL = ["--scale", "0.001", "--workers", "2", "--runtime", "eager"]
