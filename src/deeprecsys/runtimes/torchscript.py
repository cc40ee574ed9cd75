"""PyTorch's TorchScript, traced and frozen: one call a request, without the GIL.

PyTorch marks TorchScript deprecated, so it lives in this one module with `eager` as the
fallback. It stays because it is the fastest form of these models on a CPU that was measured
(`docs/decisions/0002-runtimes.md`): slicing, model and the copy into the scores are one graph
that C++ runs, so a worker holds the GIL for a few microseconds a request.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from deeprecsys.runtimes.eager import Eager, Prepared


class _Request(torch.nn.Module):
    """Slices the query's inputs, runs the model, writes the scores in place."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[torch.Tensor], scores: torch.Tensor, lo: int, hi: int) -> None:
        rows = [tensor[lo:hi] for tensor in inputs]
        scores[lo:hi].copy_(self.model(rows))


class TorchScript(Eager):
    """Raises RuntimeError from `__init__` where the model cannot be traced."""

    name = "torchscript"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._run = self._compile(model)

    def execute(self, prepared: Prepared, lo: int, hi: int) -> None:
        tensors, scores = prepared
        self._run(tensors, scores, lo, hi)

    def enter_thread(self) -> None:
        super().enter_thread()
        # The thread's own switch: without it every operator checks for gradients.
        torch.autograd.grad_mode.set_grad_enabled(False)

    def _compile(self, model: Any) -> Any:
        """Traced on 7 candidates (a size no model has), scripted around the trace, frozen."""
        inputs = model.example(7, np.random.default_rng(0))
        tensors, _ = self.prepare(inputs, np.empty((7, model.tasks), np.float32))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the deprecation that the docstring answers
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                model.module, (tensors,), check_trace=False
            )
            request = torch.jit.script(_Request(traced).eval())
            # As constants of the graph the tables would never be freed: PyTorch keeps graphs for
            # the life of the process.
            tables = [
                name
                for name, parameter in request.named_parameters(remove_duplicate=False)
                if parameter.nbytes == model.table_bytes
            ]
            return torch.jit.freeze(request, preserved_attrs=tables)
