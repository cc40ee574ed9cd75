"""TorchScript as an executor (src/native/torchscript), which links libtorch."""

from collections.abc import Sequence
from typing import Any

def executor(
    inputs: Sequence[tuple[int, str, Sequence[int]]],
    joined: Sequence[int],
    of_query: Sequence[int],
    tasks: int,
    request: Any,
    one_user: Any = None,
    apart: Any = None,
) -> Any:
    """A capsule for `_native.Executor`; it keeps the modules.

    inputs: of each that is a tensor of its own its column, datatype and row's shape. joined:
    columns that are one tensor. of_query: positions, among inputs, of what candidates may share.
    request, one_user: script modules; apart: one with methods `of_user` and `rest`.
    """

def load(path: str) -> Any:
    """A script module as `torch._C` has it, read without the GIL."""

def around(module: Any, source: str) -> Any:
    """A script module as `torch._C` has it, whose `model` is that one and whose methods are these;
    it is freed when nobody holds it, as none is that Python compiles."""
