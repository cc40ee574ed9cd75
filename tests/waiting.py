"""Waiting for what other threads do, without guessing how long that takes."""

import time

WAIT_S = 10


def until(holds):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)
