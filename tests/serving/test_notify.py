"""What systemd hears of a server, by a real socket; and that nothing depends on its hearing."""

import os
import socket
import time
import uuid

import pytest

from deeprecsys.serving import notify
from deeprecsys.serving.notify import Supervisor, feed_s, message


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd's, and the NOTIFY_SOCKET that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(notify.address(name))
        channel.settimeout(10)
        yield channel, name


def heard(channel):
    return dict(line.split("=", 1) for line in channel.recv(4096).decode().split("\n"))


def test_a_message_is_a_line_for_each_thing_said():
    assert message(READY=1, STATUS="takes queries") == b"READY=1\nSTATUS=takes queries"


@pytest.mark.parametrize("text", ["a\nWATCHDOG=1", "a\r\nWATCHDOG=1", "a\n\n  WATCHDOG=1\n"])
def test_no_status_can_say_something_else(text):
    assert message(STATUS=text) == b"STATUS=a WATCHDOG=1"


def test_what_no_text_can_hold_is_sent_all_the_same():
    assert message(STATUS="a\udc80b") == b"STATUS=a?b"


def test_a_life_as_systemd_hears_it(systemd):
    channel, name = systemd
    supervisor = Supervisor({"NOTIFY_SOCKET": name}, os.getpid())
    supervisor.ready("serving ncf")
    assert heard(channel) == {"READY": "1", "STATUS": "serving ncf"}
    began_us = time.monotonic_ns() // 1000
    supervisor.reloading("reading the configuration")
    said = heard(channel)
    assert began_us <= int(said.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert said == {"RELOADING": "1", "STATUS": "reading the configuration"}
    supervisor.status("two models")
    assert heard(channel) == {"STATUS": "two models"}
    supervisor.stopping("draining")
    assert heard(channel) == {"STOPPING": "1", "STATUS": "draining"}


def test_the_watchdog_is_fed_at_half_of_its_time(systemd):
    channel, name = systemd
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}
    supervisor = Supervisor(environment, 77)
    fed_s = []
    for now_s in range(100, 161):  # a minute's ticks
        supervisor.alive(float(now_s))
        supervisor.status("x")
        while heard(channel) == {"WATCHDOG": "1"}:
            fed_s.append(now_s)
    assert fed_s == [100, 115, 130, 145, 160]


@pytest.mark.parametrize(
    ("environment", "every_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "77"}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_a_watchdog_of_this_process_alone_is_fed(environment, every_s):
    assert feed_s(environment, 77) == every_s


def told(environment):
    """What the log has, of a life that says everything twice."""
    lines = []
    supervisor = Supervisor(environment, 77, lambda event, **about: lines.append((event, about)))
    for _ in range(2):
        supervisor.ready("x")
        supervisor.reloading("x")
        supervisor.alive(1e9)
        supervisor.stopping("x")
    return lines


@pytest.mark.parametrize("name", [None, "", "relative/path", "vsock:2:1234"])
def test_without_a_socket_that_it_knows_nothing_is_sent_or_logged(name):
    environment = {"WATCHDOG_USEC": "30000000"}
    if name is not None:
        environment["NOTIFY_SOCKET"] = name
    assert told(environment) == []


@pytest.mark.parametrize("name", ["/nowhere/notify", "/" + "n" * 200, "/a\0b", "@gone"])
def test_a_socket_that_does_not_answer_is_logged_once_and_ends_nothing(name):
    [(event, about)] = told({"NOTIFY_SOCKET": name})
    assert event == "systemd not told"
    assert about["what"] == "READY"
    assert about["why"]


def test_a_socket_that_is_full_is_not_waited_for(systemd):
    channel, name = systemd
    lines = []
    supervisor = Supervisor({"NOTIFY_SOCKET": name}, 77, lambda event, **about: lines.append(event))
    for _ in range(10_000):  # more than a queue of the kernel holds
        supervisor.status("x" * 200)
        if lines:
            break
    assert lines == ["systemd not told"]
    assert heard(channel) == {"STATUS": "x" * 200}
