"""Nothing that a client sends does anything to the log but to be in it."""

import json
import logging
import socket

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import UserError
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.serving import log_line
from deeprecsys.serving.server import json_log
from serving_fixture import Client, serving
from stub_model import StubModel, StubRuntime
from waiting import until

NASTY = 'a\n{"event":"ready"}\r\x1b[2J\x1b]0;x\x07\x00\x08\x7f' + "\x9b31m\u2028\u202e\U0001f600"


def is_safe(line):
    return line.isascii() and line.isprintable()


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=40))
def test_a_line_is_one_and_printable_and_says_what_was_said(text):
    line = log_line.line({"id": text, text: 1, "in": {"it": [text]}})
    assert is_safe(line)
    assert json.loads(line)["id"] == text


def test_half_of_a_pair_is_said_too():
    line = log_line.line({"id": "\ud800\x1b", "ms": 1.5})
    assert is_safe(line)
    assert json.loads(line) == {"id": "\ud800\x1b", "ms": 1.5}


def test_what_is_plain_stays_as_it_was():
    assert log_line.line({"event": "query", "ms": 1.5, "no": None}) == (
        '{"event":"query","ms":1.5,"no":null}'
    )


def test_other_loggers_lines_are_lines_too():
    formatter = log_line.Formatter()
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "Exception in %s", (NASTY,),
                                   (type(error), error, error.__traceback__))  # fmt: skip
    line = formatter.format(record)
    assert is_safe(line)
    said = json.loads(line)
    assert said["by"] == "asyncio"
    assert said["text"].count(NASTY) == 2
    own = logging.LogRecord(log_line.OURS, logging.INFO, "", 0, '{"event":"x"}', (), None)
    assert formatter.format(own) == '{"event":"x"}'


@pytest.mark.engine
def test_ids_paths_and_faults_of_clients_are_escaped(caplog):
    caplog.set_level(logging.INFO, log_line.OURS)
    dense = np.ones((2, 4), np.float32)
    with (
        serving(StubModel(), StubRuntime(), log=json_log(), log_queries=True) as server,
        Client(server) as client,
    ):
        assert client.infer({"dense": dense}, id=NASTY)[0] == 200
        assert client.infer({"dense": dense * 666}, id=NASTY)[0] == 500
        status, said = client.send(b'{"id": "\\ud800", "inputs": []}')
        assert status == 400
        assert client.ask("POST", "/v2/models/%0a%1b%5b2J/infer", b"{}")[0] == 404
        with socket.create_connection(("127.0.0.1", server.http_port), 10) as raw:
            raw.sendall(b"POST /v2/models/\x9b31m/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 4")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = message("ModelInferRequest")(model_name="stub", id=NASTY)
            request.inputs.add(name="dense", datatype="FP32", shape=dense.shape)
            request.raw_input_contents.append(dense.tobytes())
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(request.SerializeToString())
        server.plane.fault(UserError(NASTY), f"/v2/{NASTY}")
        until(lambda: server.plane.pending == 0)
    lines = [record.getMessage() for record in caplog.records if record.name == log_line.OURS]
    assert all(is_safe(line) for line in lines)
    said = [json.loads(line) for line in lines]
    assert sum(one.get("id") == NASTY for one in said) == 3
    assert any(one["event"] == "fault" and NASTY in one["path"] for one in said)
