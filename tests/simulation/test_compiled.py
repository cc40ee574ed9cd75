"""Compiled kernels run wherever they are, whatever was kept of them before."""

import importlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching, config

import deeprecsys
from deeprecsys.simulation.compiled import compiled

SOURCE = """
from deeprecsys.simulation.compiled import compiled

@compiled()
def twice(x):
    return 2 * x
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Loads the same kernel anew, as another process would; and its index."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "doubling.py").write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("doubling", tmp_path / "doubling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.twice

    return load


def index_of(tmp_path):
    (index,) = (tmp_path / "cache").rglob("*.nbi")
    return index


def test_a_kernel_is_kept_for_the_next_process(kernel):
    assert kernel()(3) == 6
    again = kernel()
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        pickle.dumps(numba.__version__) + b"cdeeprecsys.no_longer_here\nProfile\n.",
        pickle.dumps(numba.__version__) + b"cdeeprecsys.core\nNoLongerHere\n.",
        pickle.dumps(numba.__version__)[:7],
        pickle.dumps(numba.__version__),
        b"not a pickle",
        b"",
    ],
    ids=["a module moved", "a class moved", "cut", "cut in two", "rubbish", "empty"],
)
def test_an_index_that_cannot_be_read_is_ignored_and_written_anew(kernel, tmp_path, damage):
    kernel()(3)
    index_of(tmp_path).write_bytes(damage)
    assert kernel()(3) == 6
    again = kernel()
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_kernel_is_compiled_anew_when_one_that_it_calls_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which knows whole seconds only
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "calling.py").write_text(
        "from deeprecsys.simulation.compiled import compiled\nfrom doubling import twice\n\n"
        "@compiled()\ndef more(x):\n    return twice(x) + 1\n"
    )
    for source, answer in ((SOURCE, 7), (SOURCE.replace("2 * x", "5 * x"), 16)):
        (tmp_path / "doubling.py").write_text(source)
        for name in ("calling", "doubling"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        assert importlib.import_module("calling").more(3) == answer


def test_code_that_cannot_be_read_is_compiled_anew(kernel, tmp_path):
    kernel()(3)
    for data in (tmp_path / "cache").rglob("*.nbc"):
        data.write_bytes(data.read_bytes()[:100])
    assert kernel()(3) == 6


def test_where_nothing_can_be_kept_nothing_is(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    @compiled()
    def thrice(x):
        return 3 * x

    assert thrice(2) == 6


def test_a_full_disk_costs_the_cache_and_nothing_else(kernel, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_index", full)
    assert kernel()(3) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="permissions are Linux's here")
def test_a_simulation_runs_from_read_only_code_and_home(tmp_path):
    code = tmp_path / "code" / "deeprecsys"
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(deeprecsys.__file__).parent, code, ignore=caches)
    folders = [path for path in [code, *code.rglob("*")] if path.is_dir()]
    program = """
import deeprecsys as drs, numpy as np
law = drs.ServiceTime.constant(1e-3)
schedule = drs.Schedule(arrival_s=np.arange(9.0), size=np.ones(9, np.int64))
print(drs.Simulator(law, workers=2).run(schedule, drs.Policy()).finish_s[0])
"""
    # Permissions do not stop root, unless it gives up that capability.
    as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("no setpriv, and permissions do not stop root")
    for folder in folders:
        folder.chmod(0o555)
    done = subprocess.run(
        [*(as_others if os.geteuid() == 0 else []), sys.executable, "-c", program],
        env={"PYTHONPATH": str(code.parent), "HOME": "/proc/nowhere", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.001"
