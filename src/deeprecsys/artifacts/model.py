"""A user's own model, as runtimes, engine and server take it (`core.Servable`).

Holds an opened form, and what was derived of it; runs it on one query, padded and repeated as the
artifact wants it. Knows no requests and no threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.artifacts.check import OwnCheck
from deeprecsys.artifacts.derived import Derived, Fact
from deeprecsys.artifacts.form import Form
from deeprecsys.artifacts.samples import Samples
from deeprecsys.core import (
    EXACT,
    SLA,
    Answer,
    Execution,
    Inputs,
    InputSpec,
    OutputSpec,
    UserError,
    bounds_of,
    is_shared,
    join_inputs,
    repeat_inputs,
    slice_inputs,
)
from deeprecsys.executions import CALIBRATED
from deeprecsys.workload import parse_indices

# Items that the reference scores at a time, where queries may be cut.
REFERENCE_CHUNK = 256
WHOLE = 1 << 53  # up to which outputs, held as doubles, are whole numbers exactly


@dataclass(frozen=True, slots=True)
class Tried:
    """What running the artifact told.

    least, most: candidates that it takes at once (None: any number). whole: cutting a query changes
    its scores. once: inputs of the user that it takes in one row for all candidates; single: and
    in no other way, so that a call is for one user. empty: it takes empty bags.
    """

    outputs: tuple[OutputSpec, ...]
    least: int = 1
    most: int | None = None
    whole: bool = False
    once: frozenset[str] = frozenset()
    single: bool = False
    empty: bool = True
    facts: tuple[Fact, ...] = ()


class ModelFailed(RuntimeError):
    """The artifact answered what it must not: of another shape, or with values missing."""


@dataclass(frozen=True, eq=False)
class OwnModel:
    """`form.run` on its inputs, in the order of `inputs`, gives `outputs`.

    score: which of them it is; kind: a probability or a logit, if that was declared. recorded: the
    queries of `samples`, as clients would send them. execution: how `form` computes; exact: the
    model that it was rewritten of.
    """

    name: str
    path: Path
    form: Form
    derived: Derived
    tried: Tried
    samples: Samples | None = None
    score: str = ""
    task_names: tuple[str, ...] = ()
    kind: str | None = None
    target: SLA | None = None
    sizes: str | None = None
    facts: tuple[Fact, ...] = ()
    nan: bool = False
    recorded: Sequence[Inputs] = ()
    seed: int = 0
    execution: Execution = EXACT
    exact: OwnModel | None = field(default=None, repr=False)
    work: None = None
    tables: None = None
    _answer: Answer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_answer", Answer(self.tried.outputs))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self.derived.inputs

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return self.tried.outputs

    @property
    def tasks(self) -> int:
        return next(o.columns for o in self.outputs if o.name == self.score)

    @property
    def whole(self) -> bool:
        return self.tried.whole

    @property
    def most_items(self) -> int | None:
        return self.tried.most

    @cached_property
    def memory_bytes(self) -> int:
        """About what its file holds."""
        path = self.path
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
        return sum(file.stat().st_size for file in files)

    @cached_property
    def check(self) -> OwnCheck:
        whole, tried = self.tried.whole, self.tried
        return OwnCheck(
            self.name,
            self.inputs,
            least=tried.least if whole else 1,
            most=tried.most if whole else None,
            nan=self.nan,
            empty=tried.empty,
        )

    @property
    def about(self) -> Mapping[str, Any]:
        """What profiles, summaries and reports say of it, beside its name."""
        return {
            "path": str(self.path),
            "form": self.form.name,
            "inputs_from": self.inputs_from,
            "whole": self.whole,
        }

    @property
    def said(self) -> dict[str, str]:
        """What a server says of it beside the protocol's own words."""
        said = {
            "score": self.score,
            "kind": self.kind,
            "tasks": ", ".join(self.task_names),
            "queries": "never cut" if self.whole else "",
        }
        return {name: value for name, value in said.items() if value}

    @property
    def inputs_from(self) -> str:
        """Where the inputs of runs come from: recorded, declared, or assumed."""
        if self.samples is not None:
            sizes = ", and their sizes" if (self.sizes or "").startswith("each:") else ""
            return f"recorded: {len(self.recorded):,} queries of {self.samples.path}{sizes}"
        drawn = ("values", "lengths of bags")
        assumed = [
            fact.where.removeprefix("input ")
            for fact in self.facts
            if fact.kind == "assumed" and fact.what.startswith(drawn)
        ]
        said = [s.name for s in self.inputs if s.name not in assumed and not s.bounds]
        parts = {"declared": said, "assumed": assumed}
        return "; ".join(f"{how}: {', '.join(names)}" for how, names in parts.items() if names)

    def example(
        self, n: int, rng: np.random.Generator, index_law: Any = None, users: int = 1
    ) -> Mapping[str, NDArray[Any]]:
        """Inputs of n candidates: recorded ones where there are any, else by the declared laws, ids
        without one by `index_law`."""
        if self.recorded and n:
            return self._recorded(n, int(rng.integers(len(self.recorded))))
        return draw(self.derived, n, rng, index_law, users)

    def _recorded(self, n: int, at: int) -> Mapping[str, NDArray[Any]]:
        """n candidates of recorded queries from one on, all of that one's user."""
        of_user = {s.name for s in self.inputs if s.scope == "query"}
        own = [s for s in self.inputs if s.name not in of_user]
        queries, sizes = list[Inputs](), list[int]()
        while sum(sizes) < n:
            query = self.recorded[(at + len(queries)) % len(self.recorded)]
            queries.append(query)
            sizes.append(self.check(query))
        user = slice_inputs(self.inputs, queries[sizes.index(max(sizes))], 0, 1)
        rows = slice_inputs(own, join_inputs(own, queries, sizes), 0, n)
        return {**rows, **{name: user[name] for name in of_user}}

    def reference(self, inputs: Inputs) -> NDArray[Any]:
        """By the artifact itself, in one call where a query may not be cut."""
        n = self.check(inputs)
        scores = self._answer.empty(n)
        step = n if self.whole else min(REFERENCE_CHUNK, self.most_items or REFERENCE_CHUNK)
        for lo in range(0, n, max(1, step)):
            hi = min(lo + step, n)
            self.write(slice_inputs(self.inputs, inputs, lo, hi), hi - lo, scores[lo:hi])
        return scores

    def write(self, inputs: Inputs, n: int, scores: NDArray[Any]) -> None:
        """One call of the artifact, or one a user where it takes one user at a time; its outputs
        side by side into `scores` [n, columns].

        Raises ModelFailed, or whatever the artifact does.
        """
        if self.users_apart(inputs):
            for lo, hi, part in self._by_user(inputs, n):
                self._write(part, hi - lo, scores[lo:hi])
        else:
            self._write(inputs, n, scores)

    def users_apart(self, inputs: Inputs) -> bool:
        """Must these be cut where the user changes, as the artifact takes one at a time?"""
        users = [s for s in self.inputs if s.name in self.tried.once and s.ragged is None]
        return self.tried.single and not all(is_shared(s, inputs) for s in users)

    def _by_user(self, inputs: Inputs, n: int) -> Iterator[tuple[int, int, Inputs]]:
        """First, last + 1 and inputs of neighbours who are of one user, whose row comes once."""
        users = [s for s in self.inputs if s.scope == "query"]
        rows = [slice_inputs(users, inputs, i, i + 1) for i in range(n)]
        lo = 0
        for hi in range(1, n + 1):
            if hi == n or any(not np.array_equal(rows[lo][k], rows[hi][k]) for k in rows[lo]):
                yield lo, hi, {**slice_inputs(self.inputs, inputs, lo, hi), **rows[lo]}
                lo = hi

    def _write(self, inputs: Inputs, n: int, scores: NDArray[Any]) -> None:
        inputs, wanted = self.fitted(inputs, n)
        found = self.form.run([inputs[spec.name] for spec in self.inputs])
        at = 0
        for output in self.outputs:
            part = _answered(output, found.get(output.name), wanted)
            scores[:, at : at + output.columns] = part[:n].reshape(n, output.columns)
            at += output.columns
        if np.isnan(scores).any():
            raise ModelFailed("a score is not a number")

    def fitted(self, inputs: Inputs, n: int) -> tuple[Inputs, int]:
        """As the artifact takes them, and for how many candidates: rows of the user repeated where
        it wants one a candidate, the last candidate repeated where it wants more of them."""
        specs, tried = self.inputs, self.tried
        shaped = {s.name: _shaped(s, inputs[s.name]) for s in specs}
        if n < tried.least:
            last = slice_inputs(specs, repeat_inputs(specs, shaped, n), n - 1, n)
            more = [last] * (tried.least - n)
            shaped = dict(join_inputs(specs, [shaped, *more], [n] + [1] * len(more)))
            n = tried.least
        again = [s for s in specs if s.name not in tried.once and s.scope == "query"]
        if again and any(is_shared(s, shaped) for s in again if s.ragged is None):
            every = repeat_inputs(specs, shaped, n)
            shaped |= {s.name: every[s.name] for s in again}
        return shaped, n

    @property
    def rewritable(self) -> bool:
        """May there be another execution of it?"""
        return getattr(self.form, "rewritable", False)

    def executed(self, execution: Execution) -> OwnModel:
        """The same by other means of its form; UserError, in one line, where that cannot be."""
        exact = self.exact or self
        if execution == EXACT:
            return exact
        form: Any = exact.form
        if not self.rewritable:
            raise UserError(
                f"{self.path} stays as it is: nothing in a model of the form {form.name} can be "
                "executed in another way"
            )
        n = min(CALIBRATED, self.most_items or CALIBRATED)
        some = self.example(n, np.random.default_rng(0))
        if not self.tried.single:
            some = repeat_inputs(self.inputs, some, n)
        given = self.fitted(some, n)[0]
        try:
            other = form.executed(execution, [given[spec.name] for spec in self.inputs])
        except UserError as error:
            raise UserError(f"{self.path} cannot be executed as {execution}: {error}") from error
        return replace(self, form=other, execution=execution, exact=exact)

    def without_cuts(self) -> OwnModel:
        return replace(self, tried=replace(self.tried, whole=True))


def draw(
    derived: Derived, n: int, rng: np.random.Generator, index_law: Any = None, users: int = 1
) -> dict[str, NDArray[Any]]:
    """Inputs of n candidates; bags' values as many as their drawn lengths ask for."""
    law = index_law or parse_indices("uniform")
    found: dict[str, NDArray[Any]] = {}
    lengths: dict[str, NDArray[Any]] = {}
    for spec in derived.inputs:
        if spec.bounds:
            rows = users if spec.scope == "query" else n
            lengths[spec.name] = derived.laws[spec.name](rng, (rows,), law)
            found[spec.name] = bounds_of(spec, lengths[spec.name])
    for spec in derived.inputs:
        if spec.bounds:
            continue
        rows = users if spec.scope == "query" else n
        if spec.ragged:
            rows = int(lengths[spec.ragged].sum())
        found[spec.name] = derived.laws[spec.name](rng, (rows, *spec.shape), law)
    return {spec.name: found[spec.name] for spec in derived.inputs}


def _shaped(spec: InputSpec, array: NDArray[Any]) -> NDArray[Any]:
    """[N] and [N, 1] are the same to a client."""
    if array.ndim != 1 + len(spec.shape) and not spec.ragged:
        return array.reshape(len(array), *spec.shape)
    return array


def _answered(output: OutputSpec, part: NDArray[Any] | None, n: int) -> NDArray[Any]:
    """ModelFailed for what is not n rows of numbers, or cannot be answered exactly."""
    if part is None or part.shape[:1] != (n,) or part.size != n * output.columns:
        shape = "nothing" if part is None else f"shape {list(part.shape)}"
        raise ModelFailed(f"{output.name} is {shape}, not {[n, *output.shape]}")
    if part.dtype.kind not in "fiub":
        raise ModelFailed(f"{output.name} is {part.dtype}, not {output.datatype}")
    if part.dtype.itemsize == 8 and part.dtype.kind in "iu" and (_beyond(part)).any():
        raise ModelFailed(f"{output.name} has a whole number beyond 2^53, which would be rounded")
    return part


def _beyond(part: NDArray[Any]) -> NDArray[np.bool_]:
    return (part > WHOLE) | (part < -WHOLE) if part.dtype.kind == "i" else part > WHOLE


def pieces(n: int, most: int | None) -> Sequence[tuple[int, int]]:
    """Calls of an artifact that takes at most so many candidates."""
    step = most or n
    return [(lo, min(lo + step, n)) for lo in range(0, n, max(1, step))]


__all__ = ["WHOLE", "ModelFailed", "OwnModel", "Tried", "draw", "pieces"]
