"""A server that runs out of file descriptors says so, to clients and in its log."""

import contextlib
import resource
import socket
import threading

import pytest

from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving import files
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel

pytestmark = pytest.mark.engine

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def asked(server, stack):
    """A connection that is kept, and the status that it was answered with."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), WAIT_S)
    stack.enter_context(connection)
    connection.sendall(LIVE)
    return connection.recv(1 << 16)[9:12]


def lowest_free():
    with socket.socket() as free:
        return free.fileno()


def test_without_descriptors_it_answers_503_and_logs_that_at_most_once_a_second(monkeypatch):
    lines, events, logged = [], [], threading.Event()

    def log(event, **more):
        events.append(event)
        if event == "connections turned away":
            lines.append(more)
            logged.set()

    with serving(StubModel(), NoOp(), log=log) as server:
        limit = lowest_free() + 48
        monkeypatch.setattr(files, "limit", lambda: limit)
        monkeypatch.setattr("deeprecsys.serving.site._SAFE_S", 1e9)  # nobody is idle for long
        with contextlib.ExitStack() as stack:
            answers = [asked(server, stack) for _ in range(30)]
            assert set(answers) == {b"200", b"503"}
            assert answers.index(b"503") > 5
            assert logged.wait(WAIT_S)
        assert sum(line["count"] for line in lines) <= answers.count(b"503")
        assert lines[0]["files"] == limit
        assert "failed" not in events
        answer = b""
        while answer != b"200":  # as soon as the others have gone
            with contextlib.ExitStack() as stack:
                answer = asked(server, stack)


def test_a_connection_that_says_nothing_for_long_makes_room(monkeypatch):
    with serving(StubModel(), NoOp()) as server:
        idle = socket.create_connection(("127.0.0.1", server.http_port), WAIT_S)
        idle.sendall(LIVE)
        assert b" 200 " in idle.recv(1 << 16)
        monkeypatch.setattr(files, "left", lambda number: 0)
        monkeypatch.setattr("deeprecsys.serving.site._SAFE_S", -1.0)
        with idle, Client(server) as client:
            assert client.get("/v2")[0] == 200
            assert idle.recv(1) == b""


def test_a_server_raises_the_soft_limit_as_far_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        with serving(StubModel(), NoOp()):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("limit", "spare", "backlog"), [(64, 16, 8), (1 << 20, 64, 1024)])
def test_of_few_descriptors_no_more_connections_may_wait_than_can_be_refused(
    monkeypatch, limit, spare, backlog
):
    monkeypatch.setattr(files, "limit", lambda: limit)
    assert files.spare() == spare
    assert files.backlog(1024) == backlog
