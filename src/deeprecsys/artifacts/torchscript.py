"""TorchScript files: the order and the kind of the arguments, and nothing of shapes or types.

PyTorch's older format is a zip archive as well, of a pickle: it is told apart by what is in it.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, Tensor, damaged, needed
from deeprecsys.core import UserError

NAME = "torchscript"
SUFFIXES = (".pt", ".pth", ".ts", ".torchscript", ".jit")
ONLY = "scores"  # the name of an output that has none, and is the only one
_TENSOR, _LIST, _DICT = "Tensor", "List[Tensor]", "Dict[str, Tensor]"
_HINT = "save a scripted or traced module: torch.jit.trace(model, example).save('model.pt')"


class TorchScript:
    """`module` takes tensors (`kind` says how: one by one, as a list, as a dictionary)."""

    name = NAME

    def __init__(self, path: Path, trust: bool = False) -> None:
        _check_archive(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated: see `runtimes`
                self.module = _loaded(path)
        except ModuleNotFoundError as error:
            raise needed("torch", "torch", path) from error
        except Exception as error:
            raise damaged(path, "TorchScript", error) from error
        self.kind, self.found = _read(path, self.module.forward.schema)
        self.names: tuple[str, ...] = ()  # of a dictionary's inputs
        self._answers = str(self.module.forward.schema.returns[0].type)

    def bind(self, names: Sequence[str]) -> None:
        """The names of the inputs in the order in which `run` takes them."""
        self.names = tuple(names)

    def enter_thread(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.autograd.grad_mode.set_grad_enabled(False)

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        import torch

        with torch.no_grad():
            tensors = [torch.from_numpy(np.require(array, None, ["C", "W"])) for array in inputs]
            answer = self.module(*self.arguments(tensors))
        return {name: tensor.detach().numpy() for name, tensor in named(answer).items()}

    def place(self, output: str) -> str:
        """Where in `answer` this output is, in TorchScript's words."""
        if self._answers == "Tensor":
            return "answer"
        if self._answers.startswith("Dict"):
            return f"answer[{output!r}]"
        if output.startswith("output_") and output[7:].isdecimal():
            return f"answer[{output[7:]}]"
        return f"answer.{output}"

    def arguments(self, tensors: Sequence[Any]) -> Sequence[Any]:
        if self.kind == _LIST:
            return [list(tensors)]
        if self.kind == _DICT:
            return [dict(zip(self.names, tensors, strict=True))]
        return tensors


def named(answer: Any) -> dict[str, Any]:
    """Tensor, tuple, named tuple or dictionary: by name."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return {f"output_{i}": part for i, part in enumerate(answer)}
    return {ONLY: answer}


def _loaded(path: Path) -> Any:
    """A script module. torch's own `load` holds the GIL from the first byte to the last, so that a
    server which loads a version beside those it serves would answer nobody in Python meanwhile."""
    import torch

    try:
        from deeprecsys._native_torch import load
    except ImportError:  # it was not built, or for another torch
        return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return torch.jit._recursive.wrap_cpp_module(load(str(path)))  # type: ignore[no-untyped-call]


def _check_archive(path: Path) -> None:
    """UserError for a pickle: it runs whatever code its author likes, when it is loaded."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(1)
        if start == b"\x80":
            raise UserError(f"{path} is a pickle, which runs code as it is loaded: {_HINT}")
        raise UserError(f"{path} is no TorchScript that can be read, or is cut off")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in names):
        raise UserError(
            f"{path} is a pickle (torch.save), which runs code as it is loaded, and has weights "
            f"without the model: {_HINT}"
        )


def _read(path: Path, schema: Any) -> tuple[str, Found]:
    """How `forward` takes its inputs."""
    arguments = [a for a in schema.arguments if a.name != "self"]
    needed = [a for a in arguments if not a.has_default_value()]
    kinds = [str(a.type) for a in needed]
    if kinds in ([_LIST], [_DICT]):
        return kinds[0], Found(None)
    if not needed or set(kinds) != {_TENSOR}:
        wrong = ", ".join(f"{a.name}: {a.type}" for a in needed) or "nothing"
        raise UserError(
            f"{path}: forward takes {wrong}; it must take tensors, a list or a dictionary of them"
        )
    return _TENSOR, Found(tuple(Tensor(a.name) for a in needed))


__all__ = ["NAME", "SUFFIXES", "TorchScript", "named"]
