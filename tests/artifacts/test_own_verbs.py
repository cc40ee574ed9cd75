"""Where a MODEL is taken, a path is: the verbs and a server, of a user's own model."""

import json
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.artifacts import open_model
from deeprecsys.cli.hosting import Tuned
from deeprecsys.cli.main import call
from deeprecsys.core import Policy, Schedule, UserError
from deeprecsys.engine import Engine
from deeprecsys.fleet import file as fleet_file
from deeprecsys.fleet.file import kind_of
from own_models import FOLDERS, example, torchscript_folder
from serving_fixture import serving


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
    assert "\n[inputs.user]\n" in written
    assert call(["inspect", str(ranker)]) == 2  # still to be completed, and it can be read
    assert "under [inputs.user] in model.toml" in capsys.readouterr().err


def test_write_says_what_to_add_to_a_file_that_is_there_and_leaves_it(ranker, capsys):
    file = ranker / "model.toml"
    whole = file.read_text()
    assert call(["inspect", str(ranker), "--write"]) == 0
    assert "model.toml is there already, and lacks nothing" in capsys.readouterr().out
    part = whole.replace('ids = 50\ndatatype = "INT64"\n', "")
    file.write_text(part)
    assert call(["inspect", str(ranker), "--write"]) == 2
    said = capsys.readouterr().out
    lines = said[said.index("add to") :].splitlines()[1:]
    assert lines == ["[inputs.user]", 'datatype = "INT64"']
    assert file.read_text() == part
    file.write_text(whole.replace("ids = 50\n", ""))
    assert call(["inspect", str(ranker), "--write"]) == 2
    assert "[inputs.user]\nids = 1000 " in capsys.readouterr().out


def test_models_tells_what_the_score_is_and_of_which_task(ranker, capsys):
    meant = '[outputs]\nkind = "probability"\ntasks = ["click"]\n'
    (ranker / "model.toml").write_text((ranker / "model.toml").read_text() + meant)
    assert call(["models", str(ranker), "--json", "said.json"]) == 0
    out = capsys.readouterr().out
    assert "output scores: is a probability" in out
    assert "output scores: of tasks click" in out
    said = json.loads(Path("said.json").read_text())
    assert (said["kind"], said["tasks"]) == ("probability", ["click"])


@pytest.mark.engine
def test_summaries_and_reports_say_path_form_and_where_inputs_came_from(ranker):
    bench = ["bench", str(ranker), "--qps", "50", "--duration-s", "0.3", "--out", "bench"]
    assert call(bench) == 0
    said = json.loads(Path("bench/summary.json").read_text())
    assert said["path"].endswith("ranker/model.pt")
    assert (said["form"], said["whole"]) == ("torchscript", False)
    assert said["inputs_from"] == "declared: user, item; assumed: dense"
    report = Path("bench/report.html").read_text()
    assert "declared: user, item; assumed: dense" in report
    assert "torchscript" in report


@pytest.mark.engine
@pytest.mark.parametrize("form", ["torchscript", "exported"])
def test_operators_of_forms_that_run_pytorch_s_are_told_apart(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = FOLDERS[form](tmp_path / "ranker")
    asked = ["profile", str(folder), "--operators", "--batch-sizes", "16", "--budget-s", "1"]
    assert call([*asked, "--out", "p"]) == 0
    found = json.loads(Path("p/summary.json").read_text())
    last = found["operators"][-1]
    assert last["batch_size"] == 16
    assert last["shares"]["FC"] > 0
    assert last["shares"]["embedding"] > 0
    assert any("sigmoid" in name for name in last["rest"])
    assert found["roofline"] is None
    assert "Operators" in Path("p/report.html").read_text()


def test_operators_of_other_forms_are_refused_with_those_that_can(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = FOLDERS["lightgbm"](tmp_path / "ranker")
    assert call(["profile", str(folder), "--operators", "--budget-s", "1"]) == 2
    assert "the form lightgbm cannot tell where its time goes" in capsys.readouterr().err


FLEET = """
[[model]]
name = "./ranker"
qps = 100
[[kind]]
name = "k"
workers = 2
service = "linear:1e-4,1e-5"
cost = 1
"""


def test_a_fleet_s_model_may_be_a_path_with_its_own_target_and_sizes(ranker, capsys):
    toml = (ranker / "model.toml").read_text()
    (ranker / "model.toml").write_text('sizes = "fixed:300"\n' + toml)
    Path("fleet.toml").write_text(FLEET)
    found = fleet_file.read("fleet.toml")
    (model,) = found.model
    assert (model.name, model.sizes, model.sla.latency_s) == ("ranker", "fixed:300", 0.05)
    assert not model.whole
    assert kind_of(found.kind[0], found, Path()).policy["ranker"].batch_size == 128
    (ranker / "model.toml").write_text(toml.replace("target = {sla_ms = 50}", ""))
    assert call(["plan", "fleet.toml"]) == 2
    assert "which target has model ./ranker? add sla_ms to it" in capsys.readouterr().err


LIST = """
class Model:
    def __call__(self, x):
        return x[:, 0] / abs(x[:, 0]).sum()
"""


@pytest.mark.engine
@pytest.mark.usefixtures("short_simulations")
def test_a_whole_model_is_served_uncut_and_the_verbs_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("ranker").mkdir()
    Path("ranker/model.py").write_text(LIST)
    toml = 'target = {sla_ms = 50}\n[inputs.x]\ndatatype = "FP64"\nshape = [2]\n'
    Path("ranker/model.toml").write_text(toml)
    model = open_model("ranker", trust=True)
    inputs, logged = model.example(300, np.random.default_rng(0)), []
    with serving(model, log=lambda event, **about: logged.append((event, about))):
        assert ("ready", "never cut") in [(event, a.get("queries")) for event, a in logged]
    with Engine(model, 2) as engine:
        scores = engine.submit(inputs, Policy(16)).result()
        assert np.array_equal(scores, model.reference(inputs))
        joined = engine.submit(inputs, Policy(16, adaptive=True)).result()
        assert np.array_equal(joined, scores)
        assert (engine.facts().whole, engine.facts().detail["whole_queries"]) == (True, True)
    said = ["--trust", "--out", "out"]
    assert call(["bench", "ranker", "--qps", "20", "--duration-s", "0.5", *said]) == 0
    assert "its queries are never cut" in capsys.readouterr().out
    profiled = ["--budget-s", "1", "--batch-sizes", "1,1024", "--trust", "--out", "profile"]
    assert call(["profile", "ranker", *profiled]) == 0
    Path("fleet.toml").write_text(
        FLEET.replace('"./ranker"', '"./ranker"\ntrust = true\nsizes = "fixed:300"')
        + "batch_size = 16\n"
    )
    assert call(["plan", "fleet.toml", "--balancer", "random", "--out", "plan"]) == 0
    answer = json.loads(Path("plan/summary.json").read_text())["chosen"][0]
    assert answer["policy"]["batch_size"] == 300
    tuned = ["--tune", "--profile", "profile/profile.json", "--sizes", "fixed:300", *said]
    assert call(["simulate", "ranker", *tuned]) == 0
    (trial,) = json.loads(Path("out/summary.json").read_text())["trials"]
    assert trial["policy"]["batch_size"] == 300


def test_models_takes_a_path_too(ranker, capsys):
    assert call(["models", str(ranker)]) == 0
    assert "queries: may be cut" in capsys.readouterr().out


@pytest.mark.engine
def test_recorded_queries_are_the_inputs_where_there_are_some(ranker):
    own = example(30)
    own["user"] = own["user"][:2]
    np.savez(ranker / "samples.npz", size=[10, 20], **own)
    model = open_model(ranker)
    drawn = model.example(25, np.random.default_rng(0))
    assert model.check(drawn) == 25
    assert set(drawn["item"].flat) <= set(own["item"].flat)
    with Engine(model, 2) as engine:
        engine.run(Schedule(np.array([0.0, 0.001]), np.array([300, 7])), Policy(64))
        (facts,) = engine.pool_facts().values()
    assert "2 recorded queries of" in facts["source"]
    own["item"][11] = 40
    np.savez(ranker / "samples.npz", size=[10, 20], **own)
    with pytest.raises(UserError, match=r"samples.npz row 2: input item has id 40"):
        open_model(ranker)
