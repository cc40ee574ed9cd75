"""`deeprecsys serve`: what it refuses in one line, and one whole life as a process."""

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from deeprecsys.artifacts.weights import weights_hash
from deeprecsys.cli.main import call
from deeprecsys.core import Execution
from deeprecsys.executions import executed
from deeprecsys.models import load_model
from deeprecsys.runtimes import make_runtime
from serving_fixture import Client


@pytest.fixture
def policy(tmp_path):
    def write(**changed):
        path = tmp_path / "policy.json"
        said = {
            "policy": {"batch_size": 64, "offload_threshold": None},
            "model": {"model": "ncf", "variant": "paper", "scale": 0.001, "seed": 0},
            "sla": {"percentile": 95.0, "latency_s": 0.02},
        }
        path.write_text(json.dumps(said | changed))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "unknown model"),
        (["ncf", "--accelerator", "gtx-1080ti"], "serve takes cuda:N only"),
        (["ncf", "--accelerator", "cuda:0", "--execution", "packed"], "a GPU executes exact, not"),
        (["ncf", "--execution", "rows=fp8"], "rows are fp32 or fp16 or int8"),
        (["ncf", "--policy", "nowhere.json"], "cannot read the policy"),
        (["ncf", "--tls-cert", "a.pem"], "both --tls-cert and --tls-key"),
        (["ncf", "--tls-client-ca", "a.pem"], "give --tls-cert and --tls-key"),
        (["ncf", "--grpc-uds", "a", "--grpc-port", "-1"], "leave out --grpc-port -1"),
        (["ncf", "--deadline-ms", "-1"], "must not be negative"),
        (["ncf", "--workers", "0"], "--workers must be positive"),
        (["ncf", "--max-qps-per-client", "0"], "--max-qps-per-client must be positive"),
        (["ncf", "--key-file", "nowhere"], "cannot read the key"),
        (["ncf", "--log-level", "loud"], "--log-level is info"),
        (["ncf", "--log-share", "0.5"], "give --log-queries"),
        (["ncf", "--log-queries", "--log-share", "2"], "--log-share is from 0 to 1, not 2"),
        (["ncf", "--trace", "collector:4318"], "is a collector's URL, http://HOST:4318, not coll"),
        (["ncf", "--trace", "http://c:port"], "is a collector's URL"),
        (["ncf", "--trace", "http://c:4318", "--trace-share", "-1"], "--trace-share is from 0 to"),
        (["ncf", "--trace-share", "0.5"], "give --trace URL"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, said):
    assert call(["serve", *arguments, "--scale", "0.001"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_policies_that_do_not_fit_are_refused(capsys, policy):
    assert call(["serve", "wnd", "--policy", policy()]) == 2
    assert "is the policy of ncf, not of wnd" in capsys.readouterr().err
    offloading = {"batch_size": 64, "offload_threshold": 100}
    small = ["serve", "ncf", "--scale", "0.001", "--policy"]
    assert call([*small, policy(policy=offloading)]) == 2
    assert "this policy offloads" in capsys.readouterr().err
    assert call([*small, policy(sla={"latency_s": 1})]) == 2
    assert "has a damaged sla" in capsys.readouterr().err
    assert call([*small, policy(policy=3)]) == 2
    assert "holds no policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "changed", "said"),
    [
        (["--scale", "0.01"], {}, "chosen for scale 0.001, not 0.01: give --scale 0.001, or tune"),
        (["--seed", "3"], {}, "chosen for seed 0, not 3: give --seed 0, or tune again"),
        (["--variant", "authors-code"], {}, "chosen for variant paper, not authors-code"),
        (["--execution", "packed"], {}, "chosen for execution exact: leave out --execution packed"),
        (["--execution", "exact"], {"execution": {"rows": "fp16"}}, "execution rows=fp16: leave"),
        ([], {"execution": {"rows": "fp8"}}, "rows are fp32 or fp16 or int8"),
        ([], {"execution": {"user": "query"}}, "leave user=query out"),
        ([], {"execution": {"packed": True, "kept": ["no"]}}, "no layers no; it has mlp, predict"),
    ],
)  # fmt: skip
def test_a_policy_of_other_weights_or_another_execution_is_refused(
    capsys, policy, arguments, changed, said
):
    path = policy(policy={"batch_size": 64, **changed})
    ports = ["--http-port", "0", "--grpc-port", "-1"]
    given = ["ncf", "--scale", "0.001", "--policy", path, *ports, *arguments]
    assert call(["serve", *given]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(error) == 1
    assert said in error[0]


def test_a_policy_of_other_weights_is_refused_by_their_hash(capsys, policy):
    about = {"model": "ncf", "scale": 0.001, "weights": weights_hash(load_model("ncf", scale=1e-4))}
    ports = ["--http-port", "0", "--grpc-port", "-1", "--drain-s", "0"]
    assert call(["serve", "ncf", "--scale", "0.001", "--policy", policy(model=about), *ports]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"was chosen for weights {about['weights']}, ncf here has " in error
    assert "tune again" in error


@pytest.mark.engine
def test_a_server_process_from_start_to_sigterm(policy, tmp_path):
    totals = tmp_path / "totals.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "deeprecsys", "serve", "ncf", "--scale", "0.001", "--http-port", "0",
         "--grpc-port", "0", "--drain-s", "0", "--policy", policy(), "--json", str(totals)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        listening = json.loads(process.stderr.readline())
        ready = json.loads(process.stderr.readline())
        assert (ready["event"], ready["policy"]) == ("ready", "batch size 64")
        url = f"http://127.0.0.1:{listening['http_port']}"
        live = json.load(urllib.request.urlopen(f"{url}/live.json"))
        assert live["sla"]["latency_s"] == 0.02
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read().splitlines()
        assert process.wait(30) == 0
    assert [json.loads(line)["event"] for line in rest] == ["draining", "ended"]
    assert json.loads(totals.read_text())["answered"] == 0


@contextmanager
def served(*arguments):
    """A process of `serve`, ready; its ports."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deeprecsys", "serve", *arguments, "--http-port", "0",
         "--grpc-port", "-1", "--drain-s", "0"], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            listening = json.loads(process.stderr.readline())
            assert json.loads(process.stderr.readline())["event"] == "ready"
            yield listening["http_port"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


@pytest.mark.engine
def test_a_policys_execution_answers_with_the_scores_that_its_guard_saw(policy):
    execution = Execution(rows="fp16", layers="int8")
    about = {"model": "wnd", "variant": "paper", "scale": 0.001, "seed": 0}
    about["weights"] = weights_hash(load_model("wnd", scale=0.001))
    path = policy(policy={"batch_size": 64, "execution": execution.to_dict()}, model=about)
    exact = load_model("wnd", scale=0.001)
    seen = executed(exact, execution)
    inputs = exact.example(150, np.random.default_rng(7))
    with served("wnd", "--scale", "0.001", "--policy", path, "--deadline-ms", "0") as port:
        at = SimpleNamespace(http_port=port, served=SimpleNamespace(name="wnd"))
        with Client(at) as client:
            status, answer = client.infer(inputs, binary=False)
            live, config = client.get("/live.json")[1], client.get("/v2/models/wnd/config")[1]
    assert status == 200
    scores = np.float32(answer["outputs"][0]["data"]).reshape(150, 1)
    assert (scores == called(seen, inputs)).all()
    assert np.abs(scores - seen.reference(inputs)).max() < 2e-6
    assert (scores != exact.reference(inputs)).any()
    assert live["execution"] == str(execution)
    assert config["parameters"]["execution"]["string_value"] == str(execution)


def called(model, inputs):
    """As `serve` executes it: its runtime, slices of the policy's batch size."""
    runtime, scores = make_runtime("torchscript", model), np.empty((150, 1), np.float32)
    runtime.enter_thread()
    prepared = runtime.prepare(inputs, scores)
    for lo in range(0, 150, 64):
        runtime.execute(prepared, lo, min(lo + 64, 150))
    return scores
