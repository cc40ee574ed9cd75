"""A server's files, read again while it serves: what changes, and what a wrong file changes."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from urllib.error import HTTPError

import pytest
from test_versions import SECRET, Scaled, artifact

from deeprecsys.artifacts.versions import publish

pytestmark = pytest.mark.engine
OTHER = "another-secret-of-the-operators"
WAIT_S = 60


class Process:
    """`deeprecsys serve --config`, and the lines of its log."""

    def __init__(self, folder):
        self.folder = folder
        self.log = (folder / "log").open("w+")
        ports = ["--http-port", "0", "--grpc-port", "-1"]
        command = [sys.executable, "-m", "deeprecsys", "serve", "--config", "serve.toml", *ports]
        self.process = subprocess.Popen(command, cwd=folder, stderr=self.log)
        self.port = self.said("listening")["http_port"]
        self.said("ready")

    def lines(self):
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def said(self, event, count=1):
        """That event, the last one, once it was said so often."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.lines()[-3:]
            found = [line for line in self.lines() if line["event"] == event]
            if len(found) >= count:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"{event} was not said: {self.lines()[-5:]}")

    def ask(self, path, key=SECRET, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            return error.code, json.loads(error.read())

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def end(self):
        self.process.terminate()
        assert self.process.wait(WAIT_S) == 0
        self.log.close()


def configured(folder, *, batch=64, more="", names=("a",)):
    text = '[server]\nkey_file = "keys"\ndrain_s = 0\nworkers = 1\n' + more
    for name in names:
        text += f'[models.{name}]\nmodel = "./{name}"\nbatch_size = {batch}\nweight = 2\n'
    (folder / "serve.toml").write_text(text)


@pytest.fixture
def served(tmp_path):
    for k, name in enumerate("ab"):
        publish(artifact(tmp_path / "made", Scaled(k + 1)), tmp_path / name)
    (tmp_path / "keys").write_text(f"ops infer,admin {SECRET}\n")
    configured(tmp_path)
    process = Process(tmp_path)
    yield process
    process.end()


def policy(served, name="a"):
    said = served.ask(f"/v2/models/{name}/config")[1]["parameters"]
    return json.loads(said["policy"]["string_value"])["batch_size"]


def test_what_the_files_say_is_taken_over_and_what_is_wrong_changes_nothing(served):
    folder = served.folder
    assert policy(served) == 64
    configured(folder, batch=32, names=("a", "b"))
    (folder / "keys").write_text(f"ops infer,admin {SECRET}\nnext infer {OTHER}\n")
    assert served.ask("/v2", OTHER)[0] == 401
    served.hang_up()
    assert served.said("reloaded")["models"] == ["a", "b"]
    assert policy(served) == 32
    assert served.ask("/v2", OTHER)[0] == 200
    assert served.ask("/v2/models/b/ready")[0] == 200

    assert served.ask("/v2/reload", OTHER, b"")[0] == 403, "without the right"
    configured(folder, batch=16, more="hots = 1\n")
    status, said = served.ask("/v2/reload", body=b"")
    assert status == 400
    assert "nothing was changed" in said["error"]
    assert "unknown server.hots; did you mean host?" in said["error"]
    assert served.said("reload refused")["why"] in said["error"]
    assert policy(served) == 32

    configured(folder, batch=16, names=("b",))
    assert served.ask("/v2/reload", body=b"")[0] == 200
    assert served.ask("/v2/models/a/ready")[0] == 404
    assert policy(served, "b") == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.a]\nmodel = 1\n", "models.a.model must be a text, not 1"),
        ("[models.a]\n", r"\[models.a\] needs model"),
        ("[modles.a]\n", "unknown modles; did you mean models?"),
        ("[models.a]\nmodel='ncf'\nweigth=1\n", "unknown models.a.weigth; did you mean weight?"),
        ("[models.a]\nmodel='ncf'\nweight=0\n", "--weight must be a positive number|weight"),
        ("[server]\n", "names no model"),
        ("[server]\nhttp_port='x'\n[models.a]\nmodel='ncf'\n", "http_port must be a number"),
        ("[models", "cannot read serve.toml"),
        ("[models.a]\nmodel='ncf'\npolicy='no.json'\n", "cannot read the policy"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, said):
    (tmp_path / "serve.toml").write_text(text)
    command = [sys.executable, "-m", "deeprecsys", "serve", "--config", "serve.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(said, done.stderr), done.stderr
