"""The core's own tests, which `make sanitize` runs, are of the core as it is."""

import os
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src" / "native"
STRICT = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{NATIVE}")


@pytest.mark.parametrize("source", sorted(p.name for p in (NATIVE / "tests").glob("*.cpp")))
def test_each_of_them_compiles(source):
    compiler = os.environ.get("CXX", "g++").split()
    command = [*compiler, *STRICT, str(NATIVE / "tests" / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
