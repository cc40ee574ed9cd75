"""Verbs under an execution: how a model is loaded for one, and what they say of it."""

import json
import subprocess
import sys

import pytest

from deeprecsys.cli.which import Published, which
from deeprecsys.core import Execution, UserError
from deeprecsys.models import load_model

# Of a fresh process: what an earlier test took would hide the peak.
_LOAD = """
import json, resource, psutil
from deeprecsys.cli.which import Published
from deeprecsys.core import Execution

execution = Execution.parse("rows={rows},layers=int8")
Published("dlrm-rmc1", 1e-4, execution=execution).load()
before = psutil.Process().memory_info().rss
model = Published("dlrm-rmc1", {scale}, execution=execution).load()
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before, peak, model.memory_bytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in KiB on Linux only")
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
    path = tmp_path / "ranker.onnx"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"ranker.onnx is executed as its form has it: leave"):
        which(str(path), execution=Execution(rows="fp16")).check()
