"""Where a MODEL is taken, a path is: the verbs and a server, of a user's own model."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.artifacts import open_model
from deeprecsys.cli.main import call
from deeprecsys.cli.serve import Tuned
from deeprecsys.core import Policy, UserError
from deeprecsys.engine import Engine
from own_models import FOLDERS, torchscript_folder


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return FOLDERS[request.param](tmp_path / "ranker")


@pytest.fixture
def ranker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return torchscript_folder(tmp_path / "ranker")


@pytest.mark.engine
def test_bench_and_tune_take_a_path(ranker):
    trust = ["--trust", "--workers", "2"]
    assert call(["bench", str(ranker), "--qps", "50", "--duration-s", "1", *trust,
                 "--out", "bench"]) == 0  # fmt: skip
    said = json.loads(Path("bench/summary.json").read_text())
    assert said["model"] == "ranker"
    assert "drawn by the laws" in said["input_pools"]["zipf:0.92"]["source"]
    code = call(["tune", str(ranker), "--method", "static", "--budget-s", "4", *trust,
                 "--out", "tune"])  # fmt: skip
    assert code in (0, 1)  # in so short a time it may find no rate
    said = json.loads(Path("tune/summary.json").read_text())
    assert (said["model"], len(said["trials"])) == ("ranker", 2)


def test_a_policy_of_the_model_s_name_is_taken_by_serve_and_no_other(ranker):
    said = {"policy": {"batch_size": 64}, "model": {"model": "ranker"}, "runtime": None}
    Path("policy.json").write_text(json.dumps(said))
    assert Tuned.read("policy.json", open_model(ranker).name).policy.batch_size == 64
    with pytest.raises(UserError, match="is the policy of ranker, not of other"):
        Tuned.read("policy.json", "other")


@pytest.mark.engine
def test_an_engine_answers_what_the_artifact_does(folder):
    model = open_model(folder, trust=True)
    inputs = model.example(200, np.random.default_rng(0))
    with Engine(model, 2) as engine:
        for batch in (1, 7, 128):
            scores = engine.submit(inputs, Policy(batch)).result()
            np.testing.assert_allclose(scores, model.reference(inputs), rtol=1e-6)


def test_options_of_published_models_are_refused(ranker, capsys):
    assert call(["bench", str(ranker), "--qps", "9", "--scale", "0.5"]) == 2
    assert "--scale and --variant are of the published models" in capsys.readouterr().err


def test_without_a_target_tune_asks_for_one(ranker, capsys):
    toml = (ranker / "model.toml").read_text()
    (ranker / "model.toml").write_text(toml.replace("target = {sla_ms = 50}", ""))
    assert call(["tune", str(ranker)]) == 2
    assert "which target? give --sla-ms" in capsys.readouterr().err


def test_inspect_tells_what_was_found_and_exits_2_with_the_line_to_add(ranker, capsys):
    assert call(["inspect", str(ranker), "--json", "said.json"]) == 0
    out = capsys.readouterr().out
    assert "assumed   input dense: values standard normal" in out
    said = json.loads(Path("said.json").read_text())
    assert (said["form"], said["whole"], said["score"]) == ("torchscript", False, "scores")
    (ranker / "model.toml").unlink()
    assert call(["inspect", str(ranker), "--write"]) == 2
    captured = capsys.readouterr()
    assert "missing   input user: its datatype" in captured.out
    assert "does not say of input user its datatype: add datatype =" in captured.err
    written = (ranker / "model.toml").read_text()
    assert '[inputs."user"]' in written
    assert call(["inspect", str(ranker)]) == 2  # still to be completed, and it can be read
    assert "under [inputs.user] in model.toml" in capsys.readouterr().err
