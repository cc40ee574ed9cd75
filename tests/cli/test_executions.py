"""Verbs under an execution: how a model is loaded for one, and what they say of it."""

import json
import subprocess
import sys

import pytest
from small import SMALL

from deeprecsys.cli.compare import compare
from deeprecsys.cli.main import call
from deeprecsys.cli.which import Published, which
from deeprecsys.core import Execution, UserError
from deeprecsys.experiments.result import Asked
from deeprecsys.machines.service_time import Profile
from deeprecsys.models import load_model
from deeprecsys.workload import Workload
from own_models import FOLDERS

# Of a fresh process: what an earlier test took would hide the peak. Not `ru_maxrss`, which a child
# has from the process that started it.
_LOAD = """
import json, re, psutil
from deeprecsys.cli.which import Published
from deeprecsys.core import Execution

execution = Execution.parse("rows={rows},layers=int8")
Published("dlrm-rmc1", 1e-4, execution=execution).load()
before = psutil.Process().memory_info().rss
model = Published("dlrm-rmc1", {scale}, execution=execution).load()
status = open("/proc/self/status").read()
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
print(json.dumps([before, peak, model.memory_bytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it")
@pytest.mark.parametrize(("rows", "scale"), [("fp16", 0.15), ("int8", 0.24)])
def test_narrow_tables_are_never_in_memory_as_wide_ones(rows, scale):
    code = _LOAD.format(rows=rows, scale=scale)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, peak, kept = json.loads(said.stdout)
    assert kept > 250e6
    assert peak - before <= 1.15 * kept


def test_a_model_is_loaded_as_it_is_to_be_executed():
    execution = Execution.parse("rows=fp16,layers=int8")
    asked = Published("wnd", 1e-3, execution=execution)
    model = asked.load()
    assert model.execution == execution
    assert asked.memory_bytes == model.memory_bytes < load_model("wnd", scale=1e-3).memory_bytes
    assert asked.about["execution"] == str(execution)


def test_an_execution_that_the_model_cannot_have_is_refused(tmp_path):
    user = Execution(user="query")
    with pytest.raises(UserError, match="add --query-inputs, or leave user=query out"):
        which("din", execution=user).check()
    with pytest.raises(UserError, match="inputs: leave user=query out"):
        which("ncf", execution=user).check()
    path = FOLDERS["lightgbm"](tmp_path / "own")
    with pytest.raises(UserError, match=r"model.txt stays as it is: nothing in a model of"):
        which(str(path), execution=Execution(rows="fp16")).check()


NARROW = ["--execution", "rows=fp16,layers=int8"]


@pytest.mark.engine
def test_a_run_says_its_execution_wherever_its_policy_is_said(tmp_path, capsys):
    bench = ["bench", "wnd", "--qps", "20", "--duration-s", "0.5", "--batch-size", "64", *SMALL]
    assert call([*bench, *NARROW, "--out", "narrow"]) == 0
    assert "batch size 64, rows=fp16,layers=int8" in capsys.readouterr().out
    found = json.loads((tmp_path / "narrow" / "summary.json").read_text())
    assert found["execution"] == "rows=fp16,layers=int8"
    assert found["policy"]["execution"] == {"rows": "fp16", "layers": "int8"}
    assert "rows=fp16,layers=int8" in (tmp_path / "narrow" / "report.html").read_text()
    before = {name: value for name, value in found.items() if name != "execution"}
    before["policy"] = {"batch_size": 64, "offload_threshold": None}
    assert compare(before, found)["differs"] == ["execution"]
    assert compare(before, before | {"execution": "exact"})["differs"] == []


@pytest.mark.engine
def test_a_profile_of_another_execution_is_another_profile(tmp_path, capsys):
    arguments = ["profile", "ncf", *SMALL, "--batch-sizes", "1,16", "--budget-s", "0.1"]
    assert call([*arguments, *NARROW, "--out", "p"]) == 0
    assert Profile.load("p/profile.json").about["execution"] == "rows=fp16,layers=int8"
    assert call([*arguments, "--out", "p"]) == 2
    assert "the profile is of execution rows=fp16,layers=int8, not exact" in capsys.readouterr().err
    simulate = ["simulate", "ncf", "--scale", "0.001", "--profile", "p/profile.json", "--qps", "9"]
    simulate += ["--queries", "200", "--extrapolate"]
    assert call(simulate) == 2
    assert call([*simulate, *NARROW, "--out", "s"]) == 0
    found = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert found["policy"]["execution"] == {"rows": "fp16", "layers": "int8"}


def test_what_was_asked_of_a_system_says_how_its_model_is_executed():
    class System:
        model = Published("ncf", 1e-3, execution=Execution(packed=True)).load()

    assert Asked.of(System, Workload(), None).to_dict()["execution"] == "packed"


@pytest.mark.engine
def test_a_form_that_cannot_be_rewritten_stays_as_it_is(tmp_path, capsys):
    path = str(FOLDERS["torchscript"](tmp_path / "own"))
    assert call(["bench", path, "--qps", "9", "--execution", "rows=fp16"]) == 2
    assert "model.pt stays as it is: nothing in a model of" in capsys.readouterr().err
    assert call(["serve", path, "--execution", "packed", "--sla-ms", "50"]) == 2
    assert "model.pt stays as it is: nothing in a model of" in capsys.readouterr().err
    assert call(["profile", path, "--executions", "--workers", "1"]) == 2
    assert "stays as it is: leave out --executions" in capsys.readouterr().err


@pytest.mark.engine
def test_a_model_of_ones_own_is_executed_as_it_is_asked_to_be(tmp_path, capsys):
    path = str(FOLDERS["exported"](tmp_path / "own"))
    out = str(tmp_path / "run")
    asked = ["bench", path, "--qps", "20", "--queries", "20", "--out", out]
    assert call([*asked, "--execution", "rows=fp16,layers=bf16"]) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["policy"]["execution"] == {"rows": "fp16", "layers": "bf16"}
