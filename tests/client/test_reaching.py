"""How the load client reaches a server: every address of its name, TLS, headers; or says why."""

import errno
import socket
import time
from contextlib import closing

import numpy as np
import pytest

from deeprecsys.client import http, pools, server
from deeprecsys.client.access import Access, tls_trouble
from deeprecsys.client.client import Client
from deeprecsys.client.http import HttpLoad, _rest
from deeprecsys.client.server import Address
from deeprecsys.client.sheet import Rows, Sheet, new_file
from deeprecsys.client.sockets import _record, places
from deeprecsys.core import Schedule, Status, UserError
from stub_server import Act, GrpcStub, HttpStub

pytestmark = pytest.mark.engine

ACCESS = Access()
HEAD = b'{"inputs": []}'
QUERY = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(HEAD), HEAD)

STUBS = {"http": HttpStub, "grpc": GrpcStub}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    monkeypatch.setattr(pools, "_POOL_BYTES", 1 << 18)


@pytest.fixture(params=sorted(STUBS))
def either(request):
    return STUBS[request.param]


def run(url, n=20, gap_s=0.004, size=5, **options):
    with Client(url, "m", **options) as client:
        records = client.run(Schedule(np.arange(n) * gap_s, np.full(n, size), "uniform"))
        return {Status(value).name for value in records.status}, client.last_run()


def rows_of(n, gap_s=0.01):
    sheet = Sheet(new_file(), n)
    sheet.fill(Schedule(np.arange(n) * gap_s, np.ones(n, np.int64)), np.zeros(n, np.int64))
    return sheet, Rows(sheet, 0, 1, time.perf_counter())


def message(offset, size):
    return [QUERY], len(QUERY)


def speaks_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
        return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not speaks_ipv6(), reason="no IPv6 on this machine")


@ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_is_reached_at_any_address_of_its_name(either, host):
    assert {place.to[0] for place in places("localhost", 1)} >= {"127.0.0.1"}
    with either(host=host) as stub:
        assert run(stub.url)[0] == {"OK"}


class Late(socket.socket):
    """Whose connection fails as one to a distant machine does: later."""

    def connect_ex(self, address):
        super().connect_ex(address)
        return errno.EINPROGRESS


@ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", [socket.socket, Late])
def test_queries_go_where_the_name_answers(monkeypatch, host, told, kind):
    """Whichever address comes first, and whether or not the questions before said which one."""
    order = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    with HttpStub(host=host) as stub:
        found = [
            (family, socket.SOCK_STREAM, 6, "", (ip, stub.port, *([0, 0] if ":" in ip else [])))
            for family, ip in order
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
        monkeypatch.setattr(http.socket, "socket", kind)
        peer = host if told else None
        load = HttpLoad(Address("http", "both", stub.port), 8, 5, ACCESS, peer)
        sheet, rows = rows_of(8)
        with closing(load):
            tally = load.run(rows, message)
    assert tally.by_status == {"200": 8}
    assert tally.unanswered == tally.resent == 0
    assert set(sheet["status"].tolist()) == {Status.OK}


def test_a_name_of_which_no_address_answers_is_not_reached():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    load = HttpLoad(Address("http", "localhost", port), 8, 5, ACCESS)
    with closing(load):
        tally = load.run(rows_of(5)[1], message)
    assert (tally.unanswered, tally.unreached, tally.refused) == (5, 5, 5)


def test_without_more_files_queries_wait_for_the_connections_there_are(monkeypatch):
    made = []

    class Few(socket.socket):
        def __init__(self, *arguments, **options):
            if len(made) == 2:
                raise OSError(errno.EMFILE, "Too many open files")
            made.append(self)
            super().__init__(*arguments, **options)

    with HttpStub(act=lambda n: Act(delay_s=0.05)) as stub:
        load = HttpLoad(Address.parse(stub.url), 256, 10, ACCESS)
        _, rows = rows_of(12, gap_s=0.001)
        with closing(load), monkeypatch.context() as few:
            few.setattr(http.socket, "socket", Few)
            tally = load.run(rows, message)
    assert tally.by_status == {"200": 12}
    assert tally.unanswered == 0
    assert len(made) == 2


def test_records_of_tls_hold_what_fits_and_lose_nothing():
    parts = [b"head", bytes(range(200)), b"x" * 40_000, b"tail"]
    whole, sent, left = b"".join(parts), [], list(parts)
    while left:
        record = bytes(_record(left))
        assert 0 < len(record) <= 16 << 10
        sent.append(record)
        left = _rest(left, len(record))
        left = [part for part in left if len(part)]
    assert b"".join(sent) == whole
    assert len(sent) == 3


def test_what_is_sent_over_tls_is_what_is_sent_without(either, authority):
    sent = []
    for signed in (None, authority.signed("good")):
        with either(signed=signed) as stub:
            said, told = run(stub.url, ca_file=authority.ca if signed else None)
        assert said == {"OK"}
        assert told["resent"] == told["unanswered"] == 0
        sent.append([asked.inputs["ids"].tolist() for asked in stub.asked])
    assert sorted(sent[0]) == sorted(sent[1])


def test_large_bodies_and_every_way_to_answer_go_through_tls(authority):
    ways = ["plain", "chunked", "close", "pieces", "bare"]
    wide = [{"name": "x", "datatype": "FP64", "shape": [-1, 2000]}]
    with HttpStub(act=lambda n: Act(how=ways[n % 5]), inputs=wide,
                  signed=authority.signed("good")) as stub:  # fmt: skip
        said, told = run(stub.url, 15, 0.02, 100, ca_file=authority.ca, connections=3)
    assert said == {"OK"}
    assert told["bytes_sent"] > 15 * 100 * 16_000


def test_connections_are_kept_under_tls(authority):
    with HttpStub(signed=authority.signed("good")) as stub:
        run(stub.url, 30, 0.01, ca_file=authority.ca)
    assert stub.connections < 10


@pytest.mark.parametrize(
    ("name", "trusted", "says"),
    [
        ("good", False, r"certificate is not trusted \(.*\): name who signed it with --ca-file"),
        ("other", True, r"certificate is not for this name \(.*\): write the URL"),
    ],
)
def test_a_wrong_certificate_is_said_as_such(either, authority, name, trusted, says):
    with either(signed=authority.signed(name)) as stub, pytest.raises(UserError, match=says) as e:
        Client(stub.url, "m", ca_file=authority.ca if trusted else None).__enter__()
    assert "\n" not in str(e.value)
    assert "no answer" not in str(e.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("certificate has expired", "out of date (certificate has expired): renew it"),
        ("x: CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "(certificate has expired)"),
        ("certificate is not yet valid", "out of date (certificate is not yet valid): renew it"),
        ("x: CERTIFICATE_VERIFY_FAILED: self signed certificate: OK", "(self signed certificate)"),
        ("Hostname mismatch, certificate is not valid for 'a'.", "not for this name"),
        ("Peer name a is not in peer certificate", "not for this name"),
        ("SSL routines: WRONG_VERSION_NUMBER: x", "speaks no TLS"),
    ],
)
def test_a_librarys_words_become_ones_that_mend(words, says):
    assert says in tls_trouble(words)


def test_words_of_other_troubles_stay():
    assert tls_trouble("failed to connect to all addresses; last error: refused") is None


def test_a_certificate_that_turns_bad_between_runs_is_said(authority):
    plan = Schedule(np.arange(3) * 0.01, np.full(3, 2), "uniform")
    with HttpStub(signed=authority.signed("good")) as stub:
        client = Client(stub.url, "m", ca_file=authority.ca, patience_s=3)
        client.__enter__()
    with HttpStub(signed=authority.signed("other"), port=stub.port), closing(client):
        client.run(plan)
        told = client.last_run()
    assert told["unreached"] == 3
    assert "not for this name" in told["examples"]["unanswered"]


def test_tls_where_none_is_spoken_is_said(either):
    with either() as stub:
        url = stub.url.replace("://", "s://")
        with pytest.raises(UserError, match="speaks no TLS on this port"):
            Client(url, "m").__enter__()


def test_a_port_that_answers_no_handshake_is_said(monkeypatch):
    monkeypatch.setattr(server, "_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"does not answer a TLS handshake: .* write http://"):
            Client(url, "m").__enter__()


def test_no_tls_where_it_is_spoken_is_said(authority):
    with HttpStub(signed=authority.signed("good")) as stub:
        url = stub.url.replace("https", "http")
        with pytest.raises(UserError, match="TLS"):
            Client(url, "m").__enter__()


def test_headers_are_sent_with_questions_and_queries(either):
    headers = [("X-Tenant", "ads"), ("x-route", "a=b: c"), ("Host", "ranker.internal")]
    with either() as stub:
        said, _ = run(stub.url, 5, headers=headers, key="word")
    assert said == {"OK"}
    for fields in [asked.fields for asked in stub.asked] + stub.questions:
        assert fields["x-tenant"] == "ads"
        assert fields["x-route"] == "a=b: c"
        assert fields["authorization"].lower() == "bearer word"
        assert fields["host"] == "ranker.internal"


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("http://h", {"headers": {"a b": "c"}}, "no name of a header"),
        ("http://h", {"headers": {"": "c"}}, "no name of a header"),
        ("http://h", {"headers": {"a": "b\r\nc: d"}}, "header a: its value"),
        ("http://h", {"headers": {"a": "é"}}, "header a: its value"),
        ("http://h", {"headers": {"Content-Length": "3"}}, "the client's own"),
        ("grpc://h", {"headers": {"grpc-timeout": "1S"}}, "the client's own"),
        ("grpc://h", {"headers": {"trace-bin": "x"}}, "the client's own"),
        ("http://h", {"headers": {"authorization": "x"}, "key": "y"}, "not both"),
        ("http://h", {"ca_file": "x"}, "for https:// and grpcs://"),
        ("https://h", {"ca_file": "/no/such.pem"}, "No such file"),
        ("https://h", {"ca_file": __file__}, "no certificates there; give a PEM file"),
        ("grpcs://h", {"ca_file": __file__}, "no certificates there; give a PEM file"),
    ],
)
def test_what_cannot_be_sent_or_trusted_is_told(url, options, says):
    with pytest.raises(UserError, match=says) as error:
        Client(url, "m", **options)
    assert "\n" not in str(error.value)
