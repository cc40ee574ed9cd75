"""`examples/your_model`, as a newcomer follows it: train, save, tune, serve, compare."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.artifacts import open_model
from deeprecsys.artifacts.declared import read_declared
from deeprecsys.cli.main import call
from deeprecsys.core import Execution, Policy
from deeprecsys.executions import executed
from deeprecsys.experiments.guarding import guarded
from deeprecsys.workload import Workload
from serving_fixture import serving

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "your_model"
FORMS = ("torchscript", "exported", "onnx", "lightgbm")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    out = tmp_path_factory.mktemp("films")
    done = subprocess.run([sys.executable, EXAMPLE / "train.py", out], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return out


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check", EXAMPLE / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", FORMS)
def test_what_is_served_ranks_as_the_artifact_does(form, models, check):
    """Cut into requests of 48, so that answers are of several."""
    queries = list(check.recorded(models / form))
    assert len(queries) == 100
    direct = check.answers(check.artifact(models / form), queries)
    with serving(open_model(models / form), policy=Policy(48)) as server:
        url = f"http://127.0.0.1:{server.http_port}"
        with check.server(url, form) as ask:
            served = check.answers(ask, queries)
    for (one, _), (other, _) in zip(served, direct, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    auc, ndcg = check.quality(direct)
    assert check.quality(served) == pytest.approx((auc, ndcg), rel=1e-6)
    assert auc > 0.8  # by chance 0.5
    assert ndcg > 0.25  # by chance 0.06


@pytest.mark.parametrize("form", ["exported", "onnx"])
def test_what_99_9_admits_keeps_so_much_of_auc_and_ndcg(form, models, check):
    """By the client's own measures, not the guard's."""
    model, queries = open_model(models / form), list(check.recorded(models / form))
    ways = ["rows=fp16", "rows=int8", "layers=bf16", "layers=int8", "rows=fp16,layers=int8"]
    found = guarded(model, [Execution.parse(way) for way in ways], Workload())
    assert {one.drift.candidates for one in found if one.drift} == {20_000}
    exact = check.quality(check.answers(lambda given: model.reference(given)[:, 0], queries))
    admitted = [one for one in found if not one.why_not("99.9")]
    assert len(admitted) > 1
    for one in admitted:
        other = executed(model, one.execution)
        kept = check.quality(check.answers(lambda g, o=other: o.reference(g)[:, 0], queries))
        assert min(b / a for a, b in zip(exact, kept, strict=True)) >= 0.999 - 1e-4
        assert one.drift.quality.auc_ratio == pytest.approx(kept[0] / exact[0], abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_tuned_with_its_recorded_queries(form, models, monkeypatch):
    monkeypatch.chdir(models)
    brief = ["--method", "static", "--budget-s", "2", "--workers", "2"]
    code = call(["tune", form, *brief, "--out", f"runs/{form}"])
    assert code in (0, 1)  # in so short a time it may find no rate
    said = json.loads(Path(f"runs/{form}/summary.json").read_text())
    assert said["model"] == form
    assert "100 recorded queries" in str(said["input_pools"])


def test_the_client_of_the_document_gets_scores(models, capsys):
    text = (ROOT / "docs" / "your-model.md").read_text()
    (client,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with serving(open_model(models / "onnx")) as server:
        exec(client.replace("127.0.0.1:8000", f"127.0.0.1:{server.http_port}"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3  # candidates


def test_the_document_shows_the_model_toml_that_the_example_writes(models, tmp_path):
    text = (ROOT / "docs" / "your-model.md").read_text()
    shown, bags = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert tomllib.loads(shown) == tomllib.loads((models / "onnx" / "model.toml").read_text())
    (tmp_path / "model.toml").write_text(bags)
    said = read_declared(tmp_path / "model.toml").inputs
    assert said["clicked"].bag == "clicked_ends"
    assert said["clicked_ends"].bounds == "ends"


def test_quality_is_what_its_definition_says(check):
    scores, labels = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0])
    assert check.auc(scores, labels) == pytest.approx(3.5 / 4)
    assert check.ndcg(scores, labels) == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
