"""Imports go down the layers of the design only, and the facade is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deeprecsys

ROOT = Path(deeprecsys.__file__).parent
LAYERS = {
    "core": 0, "protocol": 0.5, "_native": 0.5, "_native_torch": 0.5,
    "models": 1, "workload": 1, "rules": 1, "machines": 1, "analysis": 1,
    "executions": 1.3,
    "artifacts": 1.5,
    "runtimes": 2, "simulation": 2, "tuning": 2, "report": 2,
    "engine": 3, "fleet": 3,
    "serving": 4, "client": 4,
    "experiments": 6,
    "cli": 7, "__init__": 7, "__main__": 8,
}  # fmt: skip


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import in {path}"
        assert "deeprecsys" not in names, f"{path} imports the facade"
        found |= {n.split(".")[1] for n in names if n.startswith("deeprecsys.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = package_of(path)
    for other in imported(path):
        assert other == own or LAYERS[other] < LAYERS[own], f"{own} must not import {other}"


def test_importing_the_facade_loads_nothing_heavy():
    code = (
        "import sys, deeprecsys as drs; drs.Policy; drs.Workload; drs.tune; drs.summarize\n"
        "heavy = {'torch', 'numba', 'scipy.stats', 'plotly', 'grpc', 'ray', 'pandas', "
        "'opentelemetry'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_facade_loads():
    for name in deeprecsys.__all__:
        assert getattr(deeprecsys, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        deeprecsys.nonsense  # noqa: B018
