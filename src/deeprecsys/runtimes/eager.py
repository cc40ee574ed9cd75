"""PyTorch's eager mode on the CPU: the plain model, and the fallback of every other runtime.

Holds the GIL between operators, so small requests on several workers get in each other's way.
"""

from __future__ import annotations

from typing import Any

import torch

from deeprecsys.core import Inputs
from deeprecsys.runtimes import Scores

Prepared = tuple[list[torch.Tensor], torch.Tensor]


class Eager:
    """Runs `model.module` on slices that are views of the query's inputs."""

    name = "eager"

    def __init__(self, model: Any) -> None:
        self._module = model.module
        self._names = [spec.name for spec in model.inputs]

    def enter_thread(self) -> None:
        torch.set_num_threads(1)  # per thread: one core, one worker

    def prepare(self, inputs: Inputs, scores: Scores) -> Prepared:
        from_numpy = torch.from_numpy
        return [from_numpy(inputs[name]) for name in self._names], from_numpy(scores)

    def execute(self, prepared: Prepared, lo: int, hi: int) -> None:
        tensors, scores = prepared
        with torch.inference_mode():
            scores[lo:hi].copy_(self._module([tensor[lo:hi] for tensor in tensors]))
