"""A Python file with a class: the author's own code, so it needs trust.

The class is made without arguments; called with arrays by name, it answers an array, a tuple or a
dictionary of them, with a row a candidate. It is called from several threads at a time, and scales
as far as it lets go of the GIL.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, Tensor, foreign_code, reason
from deeprecsys.artifacts.torchscript import named
from deeprecsys.core import Execution, UserError

NAME = "python"
USUAL = "Model"  # the class, where a file has several


class PythonClass:
    name = NAME

    def __init__(self, path: Path, trust: bool = False) -> None:
        if not trust:
            raise foreign_code(path)
        cls = _class(path)
        try:
            self._model: Any = cls()
        except Exception as error:
            raise UserError(f"{path}: {cls.__name__}() fails: {reason(error)}") from error
        names = _arguments(path, cls)
        inputs = None if names is None else tuple(Tensor(name) for name in names)
        self.found = Found(inputs, text=True)
        self._names = names or []

    def bind(self, names: Sequence[str]) -> None:
        self._names = list(names)

    @property
    def rewritable(self) -> bool:
        """Only a torch module is known from within."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(self._model, torch.nn.Module)

    def executed(self, execution: Execution, examples: Sequence[Array]) -> PythonClass:
        """Of a torch module; the same class with other parts. UserError where that cannot be."""
        import torch

        from deeprecsys.executions.own import rewritten

        def run(module: Any) -> Any:
            with torch.no_grad():
                return module(**dict(zip(self._names, examples, strict=True)))

        other = copy.copy(self)
        other._model = rewritten(self._model, execution, run)
        return other

    def enter_thread(self) -> None:
        """One thread a worker, where the class computes with torch."""
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        answer = named(self._model(**dict(zip(self._names, inputs, strict=True))))
        return {name: _array(part) for name, part in answer.items()}


def _class(path: Path) -> Any:
    spec = spec_from_file_location(f"deeprecsys_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {reason(error)}") from error
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and callable_of(value)
    ]
    chosen = [cls for cls in classes if cls.__name__ == USUAL] or classes
    if len(chosen) != 1:
        names = ", ".join(cls.__name__ for cls in classes) or "none"
        raise UserError(
            f"{path}: which class is the model? It has {names} with __call__; name one {USUAL}"
        )
    return chosen[0]


def callable_of(cls: Any) -> Any:
    """Its `__call__`, or a torch module's `forward`."""
    return getattr(cls, "forward", None) or cls.__dict__.get("__call__")


def _arguments(path: Path, cls: Any) -> list[str] | None:
    """Names of the inputs; None where it takes any."""
    parameters = list(inspect.signature(callable_of(cls)).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
        raise UserError(f"{path}: {cls.__name__} must take its inputs by name")
    return [p.name for p in parameters if p.default is p.empty]


def _array(part: Any) -> Array:
    return np.asarray(part.detach().numpy() if hasattr(part, "detach") else part)


__all__ = ["NAME", "PythonClass"]
