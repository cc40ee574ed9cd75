"""Builds `deeprecsys._native`, the core in C++ of src/native; all else is in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
NATIVE = Path("src/native")
ROOMS = ("rules", "engine", "http", "bindings")
FLAGS = (
    "-std=c++20", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
    "-ffp-contract=off",  # sums come out as Python's do
)  # fmt: skip


class Build(build_ext):
    """Says in one line what is missing."""

    def build_extensions(self) -> None:
        complain_without_compiler()
        super().build_extensions()


def complain_without_compiler() -> None:
    compiler = os.environ.get("CXX") or (sysconfig.get_config_var("CXX") or "g++").split()[0]
    if shutil.which(compiler.split()[0]) is None:
        stop(f"there is no C++ compiler ({compiler}): install g++ 11 or later (Debian: "
             "apt-get install g++), or name another with CXX=")  # fmt: skip
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop(
            "Python.h is not there: install Python's headers (Debian: apt-get install python3-dev)"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <compare>\n#include <semaphore>\nint main() {}\n")
        command = [*compiler.split(), "-std=c++20", "-fsyntax-only", str(source)]
        if subprocess.run(command, capture_output=True).returncode:
            stop(f"{compiler} does not compile C++20: install g++ 11 or later (Debian: "
                 "apt-get install g++), or name another with CXX=")  # fmt: skip


def stop(why: str) -> None:
    sys.exit(f"deeprecsys cannot build its native core: {why}")


def sources() -> list[str]:
    return sorted(str(path.relative_to(HERE)) for room in ROOMS
                  for path in (HERE / NATIVE / room).glob("*.cpp"))  # fmt: skip


def depends() -> list[str]:
    """What a change of which compiles anew."""
    headers = (str(path.relative_to(HERE)) for path in (HERE / NATIVE).rglob("*.h"))
    return ["setup.py", *sorted(headers)]


def torchscript() -> list[Extension]:
    """The executor that links libtorch, where torch is installed; without it Python executes what
    torch does. Whoever imports it has imported torch, and so loaded its libraries. Of pybind11 it
    takes the one that torch brings, and knows torch's classes by."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None or os.environ.get("DEEPRECSYS_CORE_ALONE"):
        return []
    folder = Path(torch.origin).parent
    return [
        Extension(
            "deeprecsys._native_torch",
            [str(NATIVE / "torchscript" / "module.cpp")],
            include_dirs=[str(NATIVE)],
            extra_compile_args=[*FLAGS, "-isystem", str(folder / "include")],
            library_dirs=[str(folder / "lib")],
            libraries=["torch_cpu", "c10"],
            depends=depends(),
        )
    ]


core = Pybind11Extension("deeprecsys._native", sources(), include_dirs=[str(NATIVE)],
                         extra_compile_args=list(FLAGS), depends=depends())  # fmt: skip

# As many compilers at a time as there are cores.
ParallelCompile("DEEPRECSYS_BUILD_JOBS").install()
setup(ext_modules=[core, *torchscript()], cmdclass={"build_ext": Build})
