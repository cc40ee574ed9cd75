"""Versions of a model while it serves: loaded, switched between queries, rolled back, refused."""

import json
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deeprecsys.artifacts.versions import publish, versions
from deeprecsys.cli.hosting import Entry
from deeprecsys.rules.traffic import takes_other
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.server import Address, Server
from own_models import scripted

pytestmark = pytest.mark.engine
TOML = """
target = {sla_ms = 500}
[inputs.x]
datatype = "FP32"
shape = [4]
"""
N = 60
WAIT_S = 30
SLOWER = 50.0  # of models of a microsecond, whose times say nothing
SECRET = "of-the-house-of-operators"
KEYS = Keys.parse(f"operators infer,memory,admin {SECRET}")
BRINGS = {"authorization": f"Bearer {SECRET}"}


class Scaled(torch.nn.Module):
    """Its scores say which version it is: that, and what it was given."""

    def __init__(self, version, rounds=0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4, 1), float(version)))
        self.rounds = rounds

    def forward(self, x):
        y = x @ self.weight
        for _ in range(self.rounds):
            y = y + 0.0 * torch.sin(x @ x.T).sum(1, keepdim=True)
        return y


class Wider(torch.nn.Module):
    def forward(self, x):
        return x.sum(1, keepdim=True)


def artifact(folder, module, toml=TOML):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scripted(module, folder / "model.pt")
    (folder / "model.toml").write_text(toml)
    return folder


@pytest.fixture
def ranker(tmp_path):
    """A folder of one version."""
    publish(artifact(tmp_path / "made", Scaled(1)), tmp_path / "ranker")
    return tmp_path / "ranker"


def add(ranker, module, toml=TOML):
    return publish(artifact(ranker.parent / "made", module, toml), ranker)


def log(event, **about):
    if event == "fault":
        print(about["traceback"], flush=True)


@contextmanager
def serving(*entries, **bounds):
    server = Server([entry.source(workers=2) if k == 0 else entry.source()
                     for k, entry in enumerate(entries)],
                    Address("127.0.0.1", 0, 0, key=KEYS), Bounds(drain_s=0.0, **bounds),
                    log, 1.0)  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.ready.wait(WAIT_S)
        assert server.failure is None
        yield server
    finally:
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture(params=["http", "grpc"])
def client(request):
    """Of either protocol, by the server."""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    made = []

    def connect(server):
        port = server.http_port if request.param == "http" else server.grpc_port
        made.append(module.InferenceServerClient(f"127.0.0.1:{port}"))
        made[-1].module = module
        return made[-1]

    yield connect
    for one in made:
        one.close()


def ask(client, x=None, *, name="ranker", version="", id=""):
    """The version that answers, and whose scores these are."""
    x = np.ones((N, 4), np.float32) if x is None else x
    module = client.module
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    answer = client.infer(name, [given], model_version=version, request_id=id, headers={**BRINGS})
    scores = answer.as_numpy(answer_name(answer))
    said = answer.get_response()
    told = said["model_version"] if isinstance(said, dict) else said.model_version
    return told, scores[0, 0] / x[0].sum()


def answer_name(answer):
    said = answer.get_response()
    return said["outputs"][0]["name"] if isinstance(said, dict) else said.outputs[0].name


def index(client):
    found = client.get_model_repository_index(headers={**BRINGS})
    rows = found if isinstance(found, list) else found.models
    get = (lambda row, key: row.get(key, "")) if isinstance(found, list) else getattr
    return {get(row, "version"): (get(row, "state"), get(row, "reason")) for row in rows}


def test_a_new_version_is_loaded_rolled_back_and_freed(ranker, client):
    with serving(Entry(str(ranker), slower=SLOWER)) as server:
        who = client(server)
        assert ask(who) == ("1", 1.0)
        assert add(ranker, Scaled(2)) == "2"
        assert ask(who) == ("1", 1.0), "nobody asked for it"
        who.load_model("ranker", headers={**BRINGS})
        assert ask(who) == ("2", 2.0)
        assert ask(who, version="1") == ("1", 1.0), "it is kept"
        assert index(who) == {"1": ("READY", ""), "2": ("READY", "")}
        who.load_model("ranker", config=json.dumps({"version": "1"}), headers={**BRINGS})
        assert ask(who) == ("1", 1.0)
        assert ask(who, version="stable") == ("1", 1.0)
        who.unload_model("ranker", headers={**BRINGS})
        assert index(who) == {"1": ("READY", "")}
        with pytest.raises(InferenceServerException, match="has version 1, not '2'"):
            ask(who, version="2")
        said = [event["what"] for event in server.repository.events("ranker")]
        assert said == ["loading", "loaded", "switched", "switched", "freed"]


def test_versions_beyond_those_kept_are_freed_and_their_numbers_used_again(ranker):
    with serving(Entry(str(ranker), slower=SLOWER)) as server:
        who = triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
        who.module = triton_http
        for version in range(2, 8):
            add(ranker, Scaled(version))
            who.load_model("ranker", headers={**BRINGS})
            assert ask(who) == (str(version), version)
        assert list(index(who)) == ["6", "7"]
        assert len(server.plane.engine._part.group.parts) == 2
        assert max(server.plane.engine._part.group.parts) <= 2
        who.close()


def test_no_query_is_lost_or_answered_by_another_version_than_it_says(ranker):
    add(ranker, Scaled(2))
    with serving(Entry(str(ranker), slower=SLOWER, version="1", keep=0)) as server:
        assert server.plane.native is not None, "this is about the native path"
        over, seen, wrong = threading.Event(), set(), []

        def query():
            who = triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
            who.module = triton_http
            rng = np.random.default_rng()
            while not over.is_set():
                x = np.full((int(rng.integers(1, 300)), 4), rng.random(), np.float32)
                try:
                    told, found = ask(who, x)
                except Exception as error:
                    wrong.append(repr(error))
                    continue
                seen.add(told)
                if abs(found - float(told)) > 1e-3:
                    wrong.append((told, found))
            who.close()

        askers = [threading.Thread(target=query) for _ in range(3)]
        for asker in askers:
            asker.start()
        admin = triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
        for turn in range(4):
            admin.load_model(
                "ranker", config=json.dumps({"version": "21"[turn % 2]}), headers={**BRINGS}
            )
        over.set()
        for asker in askers:
            asker.join()
        admin.close()
        assert not wrong
        assert seen == {"1", "2"}


def test_a_canary_has_its_share_of_ids_and_each_id_keeps_its_version(ranker, client):
    add(ranker, Scaled(2))
    ids = [f"user-{k}" for k in range(60)]
    with serving(Entry(str(ranker), slower=SLOWER, version="1")) as server:
        who = client(server)
        who.load_model(
            "ranker", config=json.dumps({"version": "2", "share": 0.4}), headers={**BRINGS}
        )
        told = {id: ask(who, id=id)[0] for id in ids}
        assert told == {id: "2" if takes_other(id.encode(), 0.4) else "1" for id in ids}
        assert ask(who, version="canary") == ("2", 2.0)
        assert {ask(who)[0] for _ in range(60)} == {"1", "2"}, "those without an id are shared"
        who.load_model("ranker", config=json.dumps({"version": "2"}), headers={**BRINGS})
        assert {ask(who, id=id)[0] for id in ids} == {"2"}


def test_a_shadow_is_compared_and_never_answers(ranker, client):
    add(ranker, Scaled(2))
    with serving(Entry(str(ranker), slower=SLOWER, version="1")) as server:
        server.plane.recent.every_s = 0.0
        server.plane.native.sample_every(0.0)
        who = client(server)
        who.load_model(
            "ranker", config=json.dumps({"version": "2", "label": "shadow"}), headers={**BRINGS}
        )
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert ask(who) == ("1", 1.0)
            if server.repository.shadows()["ranker"].queries:
                break
        found = server.repository.shadows()["ranker"]
        assert found.queries
        assert found.difference == pytest.approx(4.0)


def refused(who, said, **config):
    with pytest.raises(InferenceServerException, match=said):
        who.load_model("ranker", config=json.dumps(config), headers={**BRINGS})
    assert ask(who) == ("1", 1.0), "what served is as it was"


def test_what_does_not_pass_never_serves(ranker, client):
    with serving(Entry(str(ranker), slower=SLOWER)) as server:
        who = client(server)
        refused(who, "has no version '7'; there are: 1", version="7")
        add(ranker, Wider(), TOML.replace("[4]", "[6]"))
        refused(who, r"has other inputs than version 1 \(x: FP32\[4\], now FP32\[6\]\)")
        shutil.rmtree(ranker / "2")
        add(ranker, Scaled(float("nan")))
        refused(who, "not a number")
        file = ranker / "2" / "model.pt"
        body = bytearray(file.read_bytes())
        body[len(body) // 2] ^= 1
        file.write_bytes(body)
        refused(who, "is not what manifest.json says")
        state, reason = index(who)["2"]
        assert state == "UNAVAILABLE"
        assert "manifest.json" in reason
        refused(who, "label is stable, canary, shadow", label="other")
        refused(who, "from 0 to 1", share=2)
        refused(who, "unknown parameter 'shares'", shares=0.5)
        with pytest.raises(InferenceServerException, match="load another version first"):
            who.unload_model("ranker", headers={**BRINGS})
        with pytest.raises(InferenceServerException, match="unknown model 'other'; served: ranker"):
            who.load_model("other", headers={**BRINGS})


def test_a_slower_version_does_not_serve_unless_it_is_forced(ranker, client):
    add(ranker, Scaled(2, rounds=60))
    with serving(Entry(str(ranker), version="1")) as server:
        who = client(server)
        refused(who, "takes .* times as long as version 1", version="2")
        who.load_model(
            "ranker", config=json.dumps({"version": "2", "force": True}), headers={**BRINGS}
        )
        assert ask(who) == ("2", 2.0)


def test_too_little_memory_is_said_before_anything_is_read(ranker, client, monkeypatch):
    add(ranker, Scaled(2))
    with serving(Entry(str(ranker), slower=SLOWER, version="1")) as server:
        monkeypatch.setattr("deeprecsys.serving.repository.available_bytes", lambda: 10)
        refused(client(server), "MB are free: unload a version first", version="2")


def test_half_written_versions_are_not_seen(ranker):
    assert versions(ranker) == ["1"]
    shutil.copytree(ranker / "1", ranker / "2")
    (ranker / "2" / "manifest.json").unlink()
    shutil.copytree(ranker / "1", ranker / ".3.partial")
    shutil.copytree(ranker / "1", ranker / "4")
    (ranker / "4" / "model.pt").write_bytes(b"half")
    assert versions(ranker) == ["1"]
    assert publish(ranker / "1", ranker) == "5"
    assert versions(ranker) == ["1", "5"]
    (ranker / "current").write_text("1\n")
    assert versions(ranker) == ["5", "1"], "the one to serve is last"


def test_two_models_have_one_set_of_workers_and_each_its_own_counts(ranker, tmp_path, client):
    other = tmp_path / "other"
    publish(artifact(tmp_path / "made", Scaled(7)), other)
    with serving(
        Entry(str(ranker), slower=SLOWER), Entry(str(other), slower=SLOWER, name="b", weight=2.0)
    ) as server:
        who = client(server)
        assert ask(who) == ("1", 1.0)
        assert ask(who, name="b") == ("1", 7.0)
        assert {engine.engine._part.group for engine in server.plane.hosted()} == {
            server.plane.engine._part.group
        }
        add(other, Scaled(8))
        who.load_model("b", headers={**BRINGS})
        assert ask(who, name="b") == ("2", 8.0)
        assert ask(who) == ("1", 1.0)
        counts = {(h.name, h.version): h.observed for h in server.plane.hosted()}
        server.plane.seen()
        assert [counts[key].answered for key in (("ranker", "1"), ("b", "1"), ("b", "2"))] == [
            2,
            1,
            1,
        ]
