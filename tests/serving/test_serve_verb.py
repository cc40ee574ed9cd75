"""`deeprecsys serve`: what it refuses in one line, and one whole life as a process."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from deeprecsys.cli.main import call


@pytest.fixture
def policy(tmp_path):
    def write(**changed):
        path = tmp_path / "policy.json"
        said = {
            "policy": {"batch_size": 64, "offload_threshold": None},
            "model": {"model": "ncf", "variant": "paper", "scale": 1.0, "seed": 0},
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
        (["ncf", "--policy", "nowhere.json"], "cannot read the policy"),
        (["ncf", "--tls-cert", "a.pem"], "both --tls-cert and --tls-key"),
        (["ncf", "--deadline-ms", "-1"], "must not be negative"),
        (["ncf", "--workers", "0"], "--workers must be positive"),
        (["ncf", "--max-qps-per-client", "0"], "--max-qps-per-client must be positive"),
        (["ncf", "--key-file", "nowhere"], "cannot read the key"),
        (["ncf", "--log-level", "loud"], "--log-level is info"),
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
    assert call(["serve", "ncf", "--policy", policy(policy=offloading)]) == 2
    assert "this policy offloads" in capsys.readouterr().err
    assert call(["serve", "ncf", "--policy", policy(policy=3)]) == 2
    assert "holds no policy" in capsys.readouterr().err


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
