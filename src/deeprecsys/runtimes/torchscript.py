"""PyTorch's TorchScript, traced and frozen: one call a request, without the GIL.

PyTorch marks TorchScript deprecated, so it lives in this one module with `eager` as the
fallback. It stays because it is the fastest form of these models on a CPU that was measured
(`docs/decisions/0002-runtimes.md`): slicing, model and the copy into the scores are one graph
that C++ runs, so a worker holds the GIL for a few microseconds a request.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deeprecsys._native import Executor
from deeprecsys.core import repeat_inputs
from deeprecsys.runtimes.eager import Eager, OneUser, Prepared
from deeprecsys.runtimes.native_torch import native_executor

_TRACED = 7  # candidates: a size no model has
_PARTS = ("user", "candidates", "block")


class _Request(torch.nn.Module):
    """Slices the query's inputs, runs the model, writes the scores in place."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[torch.Tensor], scores: torch.Tensor, lo: int, hi: int) -> None:
        rows = [tensor[lo:hi] for tensor in inputs]
        scores[lo:hi].copy_(self.model(rows))


class _Parts(torch.nn.Module):
    """A model's two parts, traced, each with a method of its own."""

    def __init__(self, user: torch.nn.Module, candidates: torch.nn.Module) -> None:
        super().__init__()
        self.user, self.candidates = user, candidates


# Of a user's part that is so many tensors: a script names its types. `Rest` says the same.
_APART = """
def of_user(self, users: List[Tensor]) -> Tuple[{types}]:
    return self.user(users)

def rest(
    self, user: Tuple[{types}], inputs: List[Tensor], scores: Tensor, lo: int, hi: int
) -> None:
    for begin in range(lo, hi, {block}):
        end = min(begin + {block}, hi)
        rows = [inputs[i][begin:end] for i in range(len(inputs))]
        scores[begin:end].copy_(self.candidates(user, rows))
"""


class TorchScript(Eager):
    """Raises RuntimeError from `__init__` where the model cannot be traced."""

    name = "torchscript"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._apart: Any = None
        self._specs, self._tasks = {spec.name: spec for spec in model.inputs}, model.tasks
        inputs = model.example(_TRACED, np.random.default_rng(0))
        scores = np.empty((_TRACED, model.tasks), np.float32)
        tensors, *_ = self.prepare(repeat_inputs(model.inputs, inputs, _TRACED), scores)
        # Each form of the inputs is a graph of its own.
        self._run = _compiled(_Request(_traced(model.module, tensors)), model.table_bytes)
        if self._one_user is not None:
            rows, users, *_ = self.prepare(inputs, scores)
            user, candidates, block = (getattr(self._one_user, name) for name in _PARTS)
            shared = user(users)
            parts = _traced(user, users), _traced(candidates, shared, rows)
            self._one_user = _compiled(OneUser(*parts, block), model.table_bytes)
            if self._user is not None:
                self._apart = _apart(parts, block, len(shared), model.table_bytes)
                self._user, self._candidates = self._apart.of_user, self._apart.rest

    def execute(self, prepared: Prepared, lo: int, hi: int) -> None:
        if prepared[1]:
            self._execute_of_user(prepared, lo, hi)
            return
        tensors, _, scores, _ = prepared
        self._run(tensors, scores, lo, hi)

    def executor(self, columns: Sequence[str], most_items: int) -> Executor | None:
        """None where the extension that links libtorch was not built."""
        if self._joined and self._of_query:  # of which no model has both
            return None
        at = {name: column for column, name in enumerate(columns)}
        inputs = [
            (at[name], self._specs[name].datatype, self._specs[name].shape) for name in self._names
        ]
        joined = [at[name] for name in self._joined]
        shared = self._one_user if self._of_query else None
        return native_executor(
            inputs, joined, self._of_query, self._tasks, self._run, shared, self._apart
        )

    def enter_thread(self) -> None:
        super().enter_thread()
        # The thread's own switch: without it every operator checks for gradients.
        torch.autograd.grad_mode.set_grad_enabled(False)


def _traced(module: torch.nn.Module, *inputs: Any) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the deprecation that the docstring answers
        return torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]


def _apart(parts: tuple[Any, Any], block: int, count: int, table_bytes: int) -> Any:
    types = ", ".join(["Tensor"] * count)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(_Parts(*parts).eval())
        scripted.define(_APART.format(types=types, block=block))
        return torch.jit.freeze(scripted, ["of_user", "rest", *_tables(scripted, table_bytes)])


def _compiled(request: torch.nn.Module, table_bytes: int) -> Any:
    """Scripted around the traces, and frozen."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(request.eval())
        return torch.jit.freeze(scripted, preserved_attrs=_tables(scripted, table_bytes))


def _tables(scripted: Any, table_bytes: int) -> list[str]:
    """Attributes that stay. As constants of the graph the tables would never be freed: PyTorch
    keeps graphs for the life of the process."""
    named = scripted.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if parameter.nbytes == table_bytes]
