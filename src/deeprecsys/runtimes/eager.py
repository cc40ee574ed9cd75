"""PyTorch's eager mode on the CPU: the plain model, and the fallback of every other runtime.

Holds the GIL between operators, so small requests on several workers get in each other's way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deeprecsys.core import Inputs
from deeprecsys.runtimes import Scores

# Inputs that came over a network are read-only, and nothing here writes to inputs. PyTorch warns of
# that once a process: here, where nobody is told.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), np.int32))

Prepared = tuple[list[torch.Tensor], torch.Tensor]


class Eager:
    """Runs `model.module` on slices that are views of the query's inputs."""

    name = "eager"

    def __init__(self, model: Any) -> None:
        self._module = model.module
        self._joined = list(model.joined)
        self._names = [s.name for s in model.inputs if s.name not in set(self._joined)]

    def enter_thread(self) -> None:
        torch.set_num_threads(1)  # per thread: one core, one worker

    def prepare(self, inputs: Inputs, scores: Scores) -> Prepared:
        """Tensors that share the arrays' memory; inputs of one id each are joined into one.

        The 44 of `mt-wnd` cost 60 µs as tensors of their own, to make, cut and join; 15 joined
        here (`benchmarks/choices.py`).
        """
        from_numpy = torch.from_numpy
        tensors = [from_numpy(inputs[name]) for name in self._names]
        if self._joined:
            ids = np.array([inputs[name] for name in self._joined])
            tensors.append(from_numpy(ids.reshape(len(ids), -1)).t())
        return tensors, from_numpy(scores)

    def execute(self, prepared: Prepared, lo: int, hi: int) -> None:
        tensors, scores = prepared
        with torch.inference_mode():
            scores[lo:hi].copy_(self._module([tensor[lo:hi] for tensor in tensors]))

    def execute_together(self, pieces: Sequence[tuple[Prepared, int, int]]) -> None:
        """The slices copied into one batch, and its scores back to where each belongs."""
        slices = [[tensor[lo:hi] for tensor in prepared[0]] for prepared, lo, hi in pieces]
        joined = [torch.cat(parts) for parts in zip(*slices, strict=True)]
        outputs = [prepared[1][lo:hi] for prepared, lo, hi in pieces]
        scores = torch.empty((sum(map(len, outputs)), outputs[0].shape[1]))
        self.execute((joined, scores), 0, len(scores))
        for output, part in zip(
            outputs, torch.split(scores, [len(o) for o in outputs]), strict=True
        ):
            output.copy_(part)
