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
from_numpy = torch.from_numpy

# Inputs of a row a candidate, in order; inputs of one row for all (or none); scores; what was
# computed of the user's, once it was (where an execution keeps that for the query).
Prepared = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, list[Any]]


class Eager:
    """Runs `model.module` on slices that are views of the query's inputs."""

    name = "eager"

    def __init__(self, model: Any) -> None:
        self._module = model.module
        self._joined = list(model.joined)
        apart = [spec for spec in model.inputs if spec.name not in set(self._joined)]
        self._names = [spec.name for spec in apart]
        # Positions of what may be shared, and of what may not.
        self._of_query = [i for i, spec in enumerate(apart) if spec.scope == "query"]
        self._rest = [i for i, spec in enumerate(apart) if spec.scope == "candidate"]
        self._one_user: Any = None
        self._user: Any = None
        if self._of_query:
            module = model.module
            parts = UserPart(module), CandidatePart(module)
            self._one_user = OneUser(*parts, module.block)
            if model.execution.user == "query":
                self._user, self._candidates = parts[0], Rest(parts[1], module.block)

    def enter_thread(self) -> None:
        torch.set_num_threads(1)  # per thread: one core, one worker

    def prepare(self, inputs: Inputs, scores: Scores) -> Prepared:
        """Tensors that share the arrays' memory; inputs of one id each are joined into one.

        The 44 of `mt-wnd` cost 60 µs as tensors of their own, to make, cut and join; 15 joined
        here (`benchmarks/choices.py`).
        """
        tensors = [from_numpy(inputs[name]) for name in self._names]
        if self._joined:
            ids = np.array([inputs[name] for name in self._joined])
            tensors.append(from_numpy(ids.reshape(len(ids), -1)).t())
        users = self._shared(tensors, len(scores)) if self._of_query else []
        return tensors, users, from_numpy(scores), []

    def execute(self, prepared: Prepared, lo: int, hi: int) -> None:
        with torch.inference_mode():
            if prepared[1]:
                self._execute_of_user(prepared, lo, hi)
                return
            tensors, _, scores, _ = prepared
            scores[lo:hi].copy_(self._module([tensor[lo:hi] for tensor in tensors]))

    def _execute_of_user(self, prepared: Prepared, lo: int, hi: int) -> None:
        tensors, users, scores, known = prepared
        if self._user is None:
            self._one_user(users, tensors, scores, lo, hi)
            return
        # Two workers at a query's first slices both compute it, and wait for nobody.
        user = known[0] if known else self._user(users)
        known[:] = [user]
        self._candidates(user, tensors, scores, lo, hi)

    def forget(self, prepared: Any) -> None:
        prepared[3].clear()

    def execute_together(self, pieces: Sequence[tuple[Prepared, int, int]]) -> None:
        """The slices copied into one batch, and its scores back to where each belongs; one by one
        where each has a user of its own, whose part would be computed for every candidate."""
        if all(prepared[1] for prepared, _, _ in pieces):
            for piece in pieces:
                self.execute(*piece)
            return
        slices = [self._rows(*piece) for piece in pieces]
        joined = [torch.cat(parts) for parts in zip(*slices, strict=True)]
        outputs = [prepared[2][lo:hi] for prepared, lo, hi in pieces]
        scores = torch.empty((sum(map(len, outputs)), outputs[0].shape[1]))
        self.execute((joined, [], scores, []), 0, len(scores))
        for output, part in zip(
            outputs, torch.split(scores, [len(o) for o in outputs]), strict=True
        ):
            output.copy_(part)

    def _shared(self, tensors: list[torch.Tensor], n: int) -> list[torch.Tensor]:
        """Takes out what all n candidates share; empty where that is not all of the user's.

        Then what was shared has n rows, as it has anyway where n is 1.
        """
        one_row = [i for i in self._of_query if len(tensors[i]) == 1]
        if n != 1 and len(one_row) == len(self._of_query):
            users = [tensors[i] for i in self._of_query]
            tensors[:] = [tensors[i] for i in self._rest]
            return users
        for i in one_row:
            tensors[i] = tensors[i].expand(n, *tensors[i].shape[1:])
        return []

    def _rows(self, prepared: Prepared, lo: int, hi: int) -> list[torch.Tensor]:
        """A row a candidate of every input, in the model's order."""
        tensors, users, _, _ = prepared
        rows = [tensor[lo:hi] for tensor in tensors]
        for i, user in zip(self._of_query if users else (), users, strict=True):
            rows.insert(i, user.expand(hi - lo, *user.shape[1:]))
        return rows


class OneUser(torch.nn.Module):
    """A request whose candidates share every input of the user: the model's part that reads
    nothing else once, the other `block` candidates at a time."""

    def __init__(self, user: torch.nn.Module, candidates: torch.nn.Module, block: int) -> None:
        super().__init__()
        self.user, self.candidates, self.block = user, candidates, block

    def forward(
        self,
        users: list[torch.Tensor],
        inputs: list[torch.Tensor],
        scores: torch.Tensor,
        lo: int,
        hi: int,
    ) -> None:
        user = self.user(users)
        for begin in range(lo, hi, self.block):
            end = min(begin + self.block, hi)
            rows = [tensor[begin:end] for tensor in inputs]
            scores[begin:end].copy_(self.candidates(user, rows))


class Rest(torch.nn.Module):
    """A request whose user's part is known: `user` as the model's `user` answered it."""

    def __init__(self, candidates: torch.nn.Module, block: int) -> None:
        super().__init__()
        self.candidates, self.block = candidates, block

    def forward(
        self, user: Any, inputs: list[torch.Tensor], scores: torch.Tensor, lo: int, hi: int
    ) -> None:
        for begin in range(lo, hi, self.block):
            end = min(begin + self.block, hi)
            rows = [tensor[begin:end] for tensor in inputs]
            scores[begin:end].copy_(self.candidates(user, rows))


class UserPart(torch.nn.Module):
    """A model's `user`, as a module that can be traced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: list[torch.Tensor]) -> Any:
        return self.model.user(inputs)


class CandidatePart(torch.nn.Module):
    """A model's `candidates`, likewise."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, user: Any, inputs: list[torch.Tensor]) -> Any:
        return self.model.candidates(user, inputs)
