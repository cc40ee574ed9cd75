"""HTTP/1.1 as others speak it: a table of requests by socket, and what clients are installed."""

import asyncio
import http.client
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import urllib.request

import numpy as np
import pytest

from deeprecsys.protocol import wire
from deeprecsys.runtimes.stub import NoOp
from serving_fixture import WAIT_S, serving
from stub_model import StubModel

PATH = "/v2/models/stub/infer"
BODY, _ = wire.request({"dense": np.ones((3, 4), np.float32)}, binary=False)


@pytest.fixture(scope="module")
def server():
    with serving(StubModel(), NoOp()) as server:
        yield server


@pytest.fixture(scope="module")
def url(server):
    return f"http://127.0.0.1:{server.http_port}"


def exchanged(server, *sent):
    """All that comes back, until the server closes or has nothing left to answer."""
    with socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as raw:
        for piece in sent:
            raw.sendall(piece)
        raw.shutdown(socket.SHUT_WR)
        got = b""
        while more := raw.recv(1 << 16):
            got += more
    return got


def statuses(text):
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", text)]


def post(*lines, body=BODY, version="1.1", target=PATH):
    head = [f"POST {target} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAA")
GET = "GET /v2/health/live HTTP/{}\r\nHost: x\r\n{}\r\n"
LONG = post(body=BODY + b" " * (4600 - len(BODY)))

CASES = {
    "a query": (post(), [200]),
    "an offer of HTTP/2, a query": (post(*H2C) * 2, [200, 200]),
    "an offer of HTTP/2, a probe": (GET.format("1.1", "\r\n".join(H2C) + "\r\n").encode(), [200]),
    "an offer of a web socket": (
        GET.format("1.1", "Connection: upgrade\r\nUpgrade: websocket\r\n").encode() * 2, [200] * 2),
    "a burst of queries": (LONG * 8, [200] * 8),
    "a long burst of queries": (LONG * 64, [200] * 64),
    "a burst of probes": (GET.format("1.1", "").encode() * 500, [200] * 500),
    "an absolute target": (post(target=f"http://host.example:80{PATH}"), [200]),
    "an absolute target of a probe": (b"GET HTTP://x/v2/health/live HTTP/1.1\r\n\r\n", [200]),
    "an absolute target without a path": (b"GET http://x HTTP/1.1\r\n\r\n", [200]),
    "a query string": (GET.replace("live", "live?a=b").format("1.1", "").encode(), [200]),
    "HTTP/1.0": (post(version="1.0"), [200]),
    "HTTP/1.0 ends the connection": (GET.format("1.0", "").encode() * 2, [200]),
    "HTTP/1.0 that keeps it": (
        GET.format("1.0", "Connection: Keep-Alive\r\n").encode() * 2, [200, 200]),
    "a connection that is to close": (
        GET.format("1.1", "Connection: close\r\n").encode() * 2, [200]),
    "options": (b"OPTIONS * HTTP/1.1\r\n\r\n", [405]),
    "a proxy's word": (b"CONNECT x:80 HTTP/1.1\r\n\r\n", [405]),
    "a body where none is taken": (post(target="/v2/health/live"), [413]),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "a length beside chunks": (
        post("Transfer-Encoding: chunked", body=b"0\r\n\r\n") + post(), [400]),
    "two lengths": (post("Content-Length: 3"), [400]),
    "bare line feeds": (post().replace(b"\r\n", b"\n"), []),
    "a folded header": (post("X: a\r\n b"), [400]),
    "a blank before the colon": (post("X : a"), [400]),
    "a header without a name": (post(": a"), [400]),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_each_request_gets_its_answer_and_no_other(server, what):
    sent, expected = CASES[what]
    assert statuses(exchanged(server, sent)) == expected
    assert statuses(exchanged(server, sent[:50], sent[50:])) == expected


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stub", "/metrics", "/",
             "/live.json", "/v2/models/stub/config", "/v2/models/stub/stats", "/nothing"]
)  # fmt: skip
def test_head_is_what_get_is_without_its_body(server, path):
    def answered(method):
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=WAIT_S)
        client.request(method, path)
        answer = client.getresponse()
        body = answer.read()
        client.close()
        return answer.status, {k.lower() for k in answer.headers}, body

    status, headers, body = answered("HEAD")
    assert (status, headers) == answered("GET")[:2]
    assert body == b""


def test_http_1_0_is_told_that_its_connection_is_kept(server):
    kept = GET.format("1.0", "Connection: keep-alive\r\n").encode()
    assert b"\r\nconnection: keep-alive\r\n" in exchanged(server, kept)
    assert b"\r\nconnection: close\r\n" in exchanged(server, GET.format("1.0", "").encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_none_is_told_why(server, number):
    answer = exchanged(server, post(body=BODY.replace(b"1.0", number.encode(), 1)))
    assert statuses(answer) == [400]
    assert f"JSON has no {number}".encode() in answer


# Clients: each asks a query, and a probe behind it where it keeps connections.


def needed(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here")


def said(*command, **more):
    done = subprocess.run(command, capture_output=True, timeout=WAIT_S, check=False, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needed("curl")
@pytest.mark.parametrize(
    "options", [[], ["--http1.0"], ["--http2"], ["-H", "Expect: 100-continue"],
                ["-H", "Transfer-Encoding: chunked"], ["--compressed"]]
)  # fmt: skip
def test_curl(url, options):
    answer = said("curl", "-sS", *options, "--data-binary", "@-", url + PATH, input=BODY)
    assert json.loads(answer)["outputs"][0]["shape"] == [3, 1]
    assert said("curl", "-sSf", *options[:1], "-I", f"{url}/v2/health/ready") if not options else 1


@needed("wget")
def test_wget(url):
    answer = said("wget", "-qO-", f"--post-data={BODY.decode()}", url + PATH)
    assert json.loads(answer)["outputs"][0]["shape"] == [3, 1]
    said("wget", "-q", "--spider", f"{url}/v2/health/ready")


@needed("ab")
def test_ab_which_keeps_connections_of_http_1_0(url, tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    load = ["ab", "-k", "-q", "-n", "50", "-c", "2", "-p", str(tmp_path / "body")]
    told = said(*load, "-T", "application/json", url + PATH).decode()
    assert re.search(r"Failed requests: +0", told)
    assert re.search(r"Keep-Alive requests: +50", told)


@needed("wrk")
def test_wrk(url):
    told = said("wrk", "-t1", "-c2", "-d1s", f"{url}/v2/health/live").decode()
    assert "Non-2xx" not in told
    assert "Socket errors" not in told


@needed("h2load")
def test_h2load_over_http_1(url, tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    load = ["h2load", "--h1", "-n50", "-c2", "-d", str(tmp_path / "body"), url + PATH]
    assert "50 succeeded" in said(*load).decode()


@needed("node")
def test_nodes_fetch(url):
    code = (
        "const [url, body] = process.argv.slice(1);"
        "(async () => { for (let k = 0; k < 3; k++) {"
        " const answer = await fetch(url, {method: 'POST', body});"
        " console.log(answer.status, (await answer.json()).outputs[0].shape[0]); } })()"
    )
    version = said("node", "-p", "typeof fetch").decode().strip()
    if version != "function":
        pytest.skip("this node has no fetch")
    assert said("node", "-e", code, url + PATH, BODY.decode()).split() == [b"200", b"3"] * 3


def test_pythons_own(server, url):
    client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=WAIT_S)
    for body in (BODY, iter([BODY[:9], BODY[9:]])):
        client.request("POST", PATH, body)
        assert json.load(client.getresponse())["outputs"][0]["shape"] == [3, 1]
    client.close()
    with urllib.request.urlopen(url + PATH, BODY, WAIT_S) as answer:
        assert json.load(answer)["outputs"][0]["shape"] == [3, 1]


@pytest.mark.skipif(importlib.util.find_spec("requests") is None, reason="no requests here")
def test_requests(url):
    import requests

    with requests.Session() as session:
        for _ in range(2):
            assert session.post(url + PATH, BODY, timeout=WAIT_S).json()["outputs"]


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="no aiohttp here")
def test_aiohttp(url):
    import aiohttp

    async def ask():
        async with aiohttp.ClientSession() as session:
            for data in (BODY, BODY):
                async with session.post(url + PATH, data=data, compress=False) as answer:
                    assert (await answer.json())["outputs"][0]["shape"] == [3, 1]

    asyncio.run(ask())
