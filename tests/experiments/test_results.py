"""Results: the JSON keeps its keys, and a library user gets the folder that a verb leaves."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

import deeprecsys as drs
from deeprecsys.cli.hosting import Tuned
from deeprecsys.cli.main import call
from deeprecsys.experiments import verdicts
from deeprecsys.experiments.benching import bench
from deeprecsys.experiments.profiling import profile
from deeprecsys.experiments.tuning import CHECKED_AT, Check
from deeprecsys.report import read_run
from deeprecsys.tuning import Comparison
from deeprecsys.tuning.interleave import Ratio

pytestmark = pytest.mark.engine

# Every path to a value in the JSON of version 0.1's verbs; a later version may add, not take away.
KEYS = json.loads((Path(__file__).parent / "keys.json").read_text())
LAW = ["--service", "linear:1e-4,1.5e-5", "--workers", "4", "--sla-ms", "50"]
SMALL = ["--scale", "0.001", "--workers", "2"]
COMMANDS = {
    "tune": ["tune", "ncf", "--method", "static", "--budget-s", "2", "--sla-ms", "50", *SMALL],
    "bench": ["bench", "ncf", "--qps", "50", "--duration-s", "0.5", *SMALL],
    "profile": ["profile", "ncf", "--budget-s", "1", "--batch-sizes", "1,16", *SMALL],
    "simulate": ["simulate", "--qps", "400", "--queries", "5000", *LAW],
    "simulate --tune": ["simulate", "--tune", "--method", "static", *LAW],
}  # fmt: skip
SERVICE, SLA = drs.ServiceTime.linear(1e-4, 1.5e-5), drs.SLA(0.05)


def paths(value, at=""):
    """Of every value in a JSON document, `[]` for each list on the way."""
    match value:
        case dict() if value:
            for name, one in value.items():
                yield from paths(one, f"{at}.{name}" if at else name)
        case list():
            yield at
            for one in value:
                if isinstance(one, dict | list):
                    yield from paths(one, f"{at}[]")
        case _:
            yield at


@pytest.fixture(scope="module")
def engine():
    with drs.Engine(drs.load_model("ncf", scale=0.001), workers=2, runtime="torchscript") as engine:
        yield engine


@pytest.fixture(scope="module")
def study():
    return drs.tune(drs.Simulator(SERVICE, 4), drs.Workload(), SLA, "static")


@pytest.mark.parametrize("verb", COMMANDS)
def test_no_key_of_the_json_has_gone(verb, tmp_path):
    file = tmp_path / "found.json"
    assert call([*COMMANDS[verb], "--out", str(tmp_path / "run"), "--json", str(file)]) in (0, 1)
    found = set(paths(json.loads(file.read_text())))
    reached = {path for path in KEYS[verb] if _parent(path) in {_parent(one) for one in found}}
    assert reached
    assert sorted(reached - found) == []


def _parent(path):
    return path.rpartition(".")[0]


def test_a_study_saves_the_folder_that_the_verb_leaves(study, tmp_path):
    verb, own = tmp_path / "verb", tmp_path / "own"
    assert call([*COMMANDS["simulate --tune"], "--out", str(verb)]) == 0
    assert study.save(own) == own / "report.html"
    assert names(own) == names(verb)
    (ours, *_), (theirs, *_) = read_run(own), read_run(verb)
    passing = {"date": "", "command": "", "elapsed_s": 0.0}
    assert ours | passing == theirs | passing


def test_a_live_study_leaves_the_policy_that_a_server_takes(study, tmp_path):
    live = dataclasses.replace(
        study,
        virtual=False,
        asked=dataclasses.replace(study.asked, model="ncf"),
        system={"workers": 4, "accelerator": None, "engine": {"runtime": "eager"}},
    )
    live.save(tmp_path)
    tuned = Tuned.read(str(tmp_path / "policy.json"), "ncf")
    assert (tuned.policy, tuned.sla, tuned.runtime) == (study.best.policy, SLA, "eager")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "measure",
    [
        lambda get: bench(get("engine"), drs.Workload(), rate_qps=50, duration_s=0.5),
        lambda get: profile(get("engine"), batch_sizes=[1, 16], budget_s=1),
        lambda _: bench(drs.Simulator(SERVICE, 4), drs.Workload(), rate_qps=300, queries=2000),
        lambda get: get("study"),
    ],
    ids=["bench", "profile", "simulate", "tune"],
)
def test_every_result_is_frozen_saved_and_shown(measure, request, tmp_path):
    found = measure(request.getfixturevalue)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.origin = {}
    assert found.save(tmp_path / "run").read_text() == found.report()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == found.to_dict()
    assert found.verdict
    shown = found._repr_html_()
    assert shown.startswith("<iframe")
    assert shown.count("id=figure-") == 1


def test_a_capacity_is_checked_on_fresh_seeds_and_the_pictures_are_of_a_run_that_held(study):
    """The report shows evidence for its verdict: a run below the capacity, judged like any."""
    found = study
    rate = CHECKED_AT * found.best.capacity.rate_qps
    assert [check.rate_qps for check in found.checks] == [rate] * 3
    assert len({check.seed for check in found.checks}) == 3
    assert found.shown.held
    assert drs.summarize(found.records, SLA).p95_s <= SLA.latency_s
    assert "3 of 3 fresh runs at 0.95× of it held" in found.verdict
    assert "which held the target" in found.report()


def test_a_run_that_missed_is_shown_as_one(study):
    missed = Check(100.0, 1, 0.3, False, False, 1000, 10.0)
    found = dataclasses.replace(study, checks=(missed,) * 3, shown=missed)
    assert "0 of 3 fresh runs at 0.95× of it held the target: measure again" in found.verdict
    assert "which missed the target" in found.report()


def test_a_ratio_that_may_be_anything_is_called_undecided(study):
    found = copy.deepcopy(study.study)
    name, policy = "the static baseline", drs.Policy(25)
    wide = Comparison(name, policy, Ratio(1.1, (0.05, 25.0), 3))
    found.comparisons[:] = [wide]
    assert "against the static baseline of 25 undecided: 3 rounds" in verdicts.tuned(found)
