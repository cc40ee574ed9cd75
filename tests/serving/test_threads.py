"""Jobs beside the event loop: all are done, in turn, and who computes long makes room."""

import threading
import time

import pytest

from deeprecsys.serving import threads
from deeprecsys.serving.threads import Threads
from serving_fixture import WAIT_S


def busy(seconds):
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_every_job_is_done_and_each_clients_in_order():
    pool, done, over = Threads(), [], threading.Event()
    for k in range(300):
        pool.submit(lambda k=k: done.append(k), str(k % 3))
    pool.submit(over.set, "last")
    until_s = time.monotonic() + WAIT_S
    while len(done) < 300 and time.monotonic() < until_s:
        time.sleep(0.001)
    assert over.wait(WAIT_S)
    assert sorted(done) == list(range(300))
    for client in range(3):
        assert [k for k in done if k % 3 == client] == list(range(client, 300, 3))
    pool.close()


@pytest.mark.parametrize("long", [False, True])
def test_who_computed_long_rests_while_others_go_on(long, monkeypatch):
    monkeypatch.setattr(threads, "_REST", 1e9)
    pool, over, started = Threads(), threading.Event(), threading.Event()
    done = []

    def first():
        started.set()
        busy(2 * threads._LONG_S)

    pool.submit(first, "greedy", long=long)
    assert started.wait(WAIT_S)
    pool.submit(lambda: done.append("greedy"), "greedy", long=long)
    for k in range(9):
        pool.submit(lambda k=k: done.append(k), "other", long=long)
    pool.submit(over.set, "other", long=long)
    assert over.wait(WAIT_S)
    assert done == list(range(9))
    pool.close()


def test_who_rested_goes_on(monkeypatch):
    monkeypatch.setattr(threads, "_REST", 0.1)
    pool, over = Threads(), threading.Event()
    for _ in range(3):
        pool.submit(lambda: busy(2 * threads._LONG_S), "greedy")
    pool.submit(over.set, "greedy")
    assert over.wait(WAIT_S)
    pool.close()
