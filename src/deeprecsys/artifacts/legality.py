"""Is it legal to cut a model's queries? The artifact itself is asked, when it is opened.

Nobody writes down that a model looks at its neighbours (a list-wise re-ranker, batch norm left in
training), or takes one batch size only. So it is run: alone and together, permuted, cut, on two
threads, at the edges of its ids. What is found is told as facts, like what the artifact says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.artifacts.derived import Derived, Fact
from deeprecsys.artifacts.form import Form, reason
from deeprecsys.artifacts.model import OwnModel, Tried, draw
from deeprecsys.core import (
    DTYPES,
    Answer,
    Inputs,
    InputSpec,
    OutputSpec,
    UserError,
    bounds_of,
    join_inputs,
    repeat_inputs,
    slice_inputs,
)

LARGEST = 1024
_SIZES = (1, 2, 17)
# Kernels differ by the number of rows; a model that looks at its neighbours differs by far more.
_TOLERANCE = {"FP16": 2e-2, "FP32": 2e-4, "FP64": 2e-4}

Array = NDArray[Any]


class _Writes(UserError):
    """It changes what it is given, and may not be asked again."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """An artifact and inputs to ask it with."""

    path: Path
    form: Form
    derived: Derived
    base: Inputs  # of LARGEST candidates, a row each of every input

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        return self.derived.inputs

    def some(self, lo: int, hi: int) -> Inputs:
        return slice_inputs(self.specs, self.base, lo, hi)

    def run(self, inputs: Inputs) -> Mapping[str, Array]:
        """_Writes where it writes into what it is given, which other slices read."""
        given = [inputs[spec.name] for spec in self.specs]
        before = [array.copy() for array in given]
        answer = self.form.run(given)
        for spec, array, copy in zip(self.specs, given, before, strict=True):
            if not np.array_equal(array, copy, equal_nan=array.dtype.kind == "f"):
                raise _Writes(
                    f"{self.path} changes its input {spec.name} in place: let it change a copy"
                )
        return answer

    def low(self, n: int) -> dict[str, Array]:
        """The same with the first id of every range."""
        first = {s.name: np.full_like(self.base[s.name], s.low) for s in self.specs if _has_ids(s)}
        return {**slice_inputs(self.specs, {**self.base, **first}, 0, n)}

    def fails(self, n: int) -> Exception | None:
        """Why it does not take n candidates, each with its own rows."""
        try:
            self.run(self.some(0, n))
        except _Writes:
            raise
        except Exception as error:
            return error
        return None


def try_out(
    path: Path,
    form: Form,
    derived: Derived,
    recorded: Sequence[Inputs],
    least: int,
    most: int | None,
) -> Tried:
    """least, most: candidates as far as the artifact says. UserError where it fails."""
    asked = _Asked(path, form, derived, _base(derived, recorded))
    once, single = frozenset[str](), False
    users = [s for s in asked.specs if s.scope == "query"]
    if users:
        asked, once, single = _users(asked, users)
    least, most = _bounds(asked, least, most)
    tried = Tried(_outputs(asked, least, most), least, most, once=once, single=single)
    facts = list(_said(tried))
    model = _model(asked, tried)
    why = _why_whole(model, asked.base)
    if why:
        facts.append(Fact("queries", f"never cut: {why}", "found"))
        model = model.without_cuts()
    else:
        facts.append(Fact("queries", "may be cut: a candidate's scores are its own", "found"))
    _check_threads(model, asked.base)
    empty = _edges(model, asked, facts)
    return replace(model.tried, empty=empty, facts=tuple(facts))


def _base(derived: Derived, recorded: Sequence[Inputs]) -> Inputs:
    """By the laws where nothing is recorded. Of what is, some query has candidates."""
    rng = np.random.default_rng(0)
    specs = derived.inputs
    if not recorded:
        inputs = draw(derived, LARGEST, rng)
        return repeat_inputs(specs, inputs, LARGEST)
    queries, sizes, total = [], [], 0
    while total < LARGEST:
        for query in recorded:
            n = _size(specs, query)
            if n == 0:
                continue
            queries.append(query)
            sizes.append(n)
            total += n
            if total >= LARGEST:
                break
    return slice_inputs(specs, join_inputs(specs, queries, sizes), 0, LARGEST)


def _size(specs: tuple[InputSpec, ...], query: Inputs) -> int:
    plain = [s for s in specs if s.ragged is None]
    counted = next((s for s in plain if s.scope == "candidate"), plain[0])
    return len(query[counted.name]) - (counted.bounds == "offsets")


def _users(asked: _Asked, users: list[InputSpec]) -> tuple[_Asked, frozenset[str], bool]:
    """Does it take the user's inputs in one row for all candidates, a row a candidate, or either?
    Answers which it takes in one row, and whether in no other way.

    From here on all candidates are asked about with one user's rows.
    """
    names = frozenset(s.name for s in users)
    n = 3
    first = slice_inputs(asked.specs, asked.base, 0, 1)
    rest = asked.some(0, n)
    shared = {**rest, **{name: first[name] for name in names}}
    repeated = repeat_inputs(asked.specs, shared, n)
    base = {**asked.base, **{name: first[name] for name in names}}
    found: list[Mapping[str, Array] | None] = []
    error: Exception | None = None
    for inputs in (shared, repeated):
        try:
            found.append(asked.run(inputs))
        except _Writes:
            raise
        except Exception as raised:
            error = error or raised
            found.append(None)
    one, each = found
    if one is None and each is None:
        # Perhaps it takes one number of candidates: `_bounds` finds out with a row each.
        every = repeat_inputs(asked.specs, base, LARGEST)
        return replace(asked, base=every), frozenset(), False
    if one is not None and all(len(part) == n for part in one.values() if part.ndim):
        same = each is None or all(_same(one[k], each[k]) for k in one)
        if same:
            return replace(asked, base=base), names, each is None
    return replace(asked, base=repeat_inputs(asked.specs, base, LARGEST)), frozenset(), False


def _bounds(asked: _Asked, least: int, most: int | None) -> tuple[int, int | None]:
    """The fewest and the most candidates at once: by what it says, and by trying."""
    if most is not None and least == most:
        if (error := asked.fails(least)) is not None:
            raise _failed(asked.path, least, error)
        return least, most
    errors = {n: asked.fails(n) for n in (*_SIZES, most or LARGEST)}
    works = [n for n, error in errors.items() if error is None]
    if not works:
        works = [n for n in (4, 8, 16, 32, 64, 128, 256, 512) if asked.fails(n) is None][:1]
    if not works:
        error = errors[17]
        assert error is not None
        raise _wrong_range(asked, 17) or _failed(asked.path, 17, error)
    top, bottom = max(works), min(works)
    if top != (most or LARGEST):
        top = _edge(top, most or LARGEST, lambda n: asked.fails(n) is None)
        most = top
    if bottom != 1:
        bottom = _edge(bottom, 0, lambda n: asked.fails(n) is None)
    return bottom, most


def _wrong_range(asked: _Asked, n: int) -> UserError | None:
    """Is it the declared ids that it does not take?"""
    for spec in asked.specs:
        if not _has_ids(spec):
            continue
        low = asked.low(n)
        try:
            asked.run(low)
        except Exception:
            return None
        assert spec.rows is not None
        try:
            asked.run({**low, spec.name: np.full_like(low[spec.name], spec.rows - 1)})
        except Exception as error:
            return _outside(asked.path, "last id", spec, spec.rows - 1, error)
    return None


def _outside(path: Path, what: str, spec: InputSpec, id: int, error: Exception) -> UserError:
    return UserError(
        f"{path} fails with the {what} of input {spec.name}, {id}, as declared: {reason(error)}"
    )


def _has_ids(spec: InputSpec) -> bool:
    return spec.rows is not None and spec.dtype.kind in "iu"


def _edge(works: int, fails: int, ask: Callable[[int], bool]) -> int:
    """The last that works towards one that does not."""
    while abs(fails - works) > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if ask(middle) else (works, middle)
    return works


def _outputs(asked: _Asked, least: int, most: int | None) -> tuple[OutputSpec, ...]:
    """Those that have a row a candidate, by running it twice."""
    sizes = sorted({max(2, least), min(17, most or 17)} if least != most else {least})
    found = [asked.run(asked.some(0, n)) for n in sizes]
    outputs = []
    for name, part in found[0].items():
        parts = [answer.get(name) for answer in found]
        rows = [None if p is None or p.ndim == 0 else p.shape[0] for p in parts]
        same = all(p is not None and p.shape[1:] == part.shape[1:] for p in parts)
        if rows == sizes and same:
            outputs.append(OutputSpec(name, _datatype(asked.path, name, part), part.shape[1:]))
    if not outputs:
        shapes = ", ".join(f"{name} {list(p.shape)}" for name, p in found[-1].items())
        raise UserError(
            f"{asked.path}: no output has a row a candidate; of {sizes[-1]} candidates: {shapes}"
        )
    return tuple(outputs)


def _datatype(path: Path, name: str, part: Array) -> str:
    for known, dtype in DTYPES.items():
        if part.dtype == dtype:
            return known
    raise UserError(f"{path}: output {name} is of {part.dtype}, which the protocol does not have")


def _said(tried: Tried) -> list[Fact]:
    facts = [
        Fact(f"output {o.name}", f"{o.datatype} [N{''.join(f', {n}' for n in o.shape)}]", "found")
        for o in tried.outputs
    ]
    if tried.least == tried.most:
        facts.append(Fact("candidates", f"{tried.least} at once, no more and no fewer: fewer are "
                          "filled up", "found"))  # fmt: skip
    elif tried.most is not None:
        facts.append(Fact("candidates", f"at most {tried.most} at once", "found"))
    if tried.least > 1 and tried.least != tried.most:
        facts.append(Fact("candidates", f"at least {tried.least} at once: fewer are filled up",
                          "found"))  # fmt: skip
    for name in sorted(tried.once):
        only = " and in no other way" if tried.single else ""
        facts.append(Fact(f"input {name}", f"taken in one row for all candidates{only}", "found"))
    return facts


def _model(asked: _Asked, tried: Tried) -> OwnModel:
    return OwnModel("", asked.path, asked.form, asked.derived, tried, nan=True)


def _why_whole(model: OwnModel, base: Inputs) -> str:
    """Why its queries must not be cut; "" where they may be."""
    n = min(17, model.most_items or 17)
    if model.tried.least == model.most_items:
        n = model.tried.least
    inputs = slice_inputs(model.inputs, base, 0, n)
    whole, again = _scores(model, inputs, n), _scores(model, inputs, n)
    if not _same_scores(model, whole, again):
        return "it answers the same query differently each time (dropout left in training?)"
    alone = [_scores(model, slice_inputs(model.inputs, inputs, i, i + 1), 1) for i in range(n)]
    if not _same_scores(model, whole, np.concatenate(alone)):
        return "a candidate alone has other scores than in a batch"
    order = np.random.default_rng(1).permutation(n)
    parts = [slice_inputs(model.inputs, inputs, i, i + 1) for i in order.tolist()]
    repeated = [repeat_inputs(model.inputs, part, 1) for part in parts]
    permuted = join_inputs(model.inputs, repeated, [1] * n)
    if not _same_scores(model, whole[order], _scores(model, permuted, n)):
        return "permuted candidates have other scores"
    largest = min(LARGEST, model.most_items or LARGEST)
    every = _scores(model, slice_inputs(model.inputs, base, 0, largest), largest)
    cut = slice_inputs(model.inputs, base, largest // 3, largest)
    rest = _scores(model, cut, largest - largest // 3)
    if not _same_scores(model, every[largest // 3 :], rest):
        return "a query that is cut has other scores than the whole"
    return ""


def _scores(model: OwnModel, inputs: Inputs, n: int) -> Array:
    scores = Answer(model.outputs).empty(n)
    try:
        model.write(inputs, n, scores)
    except Exception as error:
        raise _failed(model.path, n, error) from error
    return scores


def _same_scores(model: OwnModel, one: Array, other: Array) -> bool:
    at = 0
    for output in model.outputs:
        columns = slice(at, at + output.columns)
        if not _same(one[:, columns], other[:, columns], _TOLERANCE.get(output.datatype, 0.0)):
            return False
        at += output.columns
    return True


def _same(one: Array, other: Array, tolerance: float = 2e-4) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(1e-30, float(np.abs(one).max(initial=0)))
    return bool((np.abs(one - other) <= tolerance * scale).all())


def _check_threads(model: OwnModel, base: Inputs) -> None:
    """Two at once answer what one does; UserError where they do not."""
    n = max(model.tried.least, min(64, model.most_items or 64))
    queries = [slice_inputs(model.inputs, base, 0, n)] * 2
    expected = [_scores(model, query, n) for query in queries]
    found: list[Array | BaseException] = [RuntimeError("it did not answer")] * 2

    def work(which: int) -> None:
        try:
            model.form.enter_thread()
            for _ in range(3):
                found[which] = _scores(model, queries[which], n)
        except BaseException as error:
            found[which] = error

    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for want, got in zip(expected, found, strict=True):
        if isinstance(got, BaseException):
            raise UserError(f"{model.path} fails on two threads at once: {reason(got)}") from got
        random = not _same_scores(model, want, _scores(model, queries[0], n))
        if not random and not _same_scores(model, want, got):
            raise UserError(f"{model.path} answers otherwise on two threads at once than on one")


def _edges(model: OwnModel, asked: _Asked, facts: list[Fact]) -> bool:
    """The ends of each input's ids, and padding: UserError where it fails. Empty bags: told."""
    n = max(2, model.tried.least)
    n = min(n, model.most_items or n)
    inputs = slice_inputs(model.inputs, asked.base, 0, n)
    for spec in model.inputs:
        if spec.rows is None or not _has_ids(spec) or not inputs[spec.name].size:
            continue
        for what, id in (("last id", spec.rows - 1), ("padding", spec.padding)):
            if id is None:
                continue
            given = {**inputs, spec.name: np.full_like(inputs[spec.name], id)}
            try:
                model.write(given, n, Answer(model.outputs).empty(n))
            except Exception as error:
                raise _outside(model.path, what, spec, id, error) from error
    return all([_takes_empty(model, inputs, n, s, facts) for s in model.inputs if s.ragged])


def _takes_empty(
    model: OwnModel, inputs: Inputs, n: int, spec: InputSpec, facts: list[Fact]
) -> bool:
    counting = next(s for s in model.inputs if s.name == spec.ragged)
    bags = len(inputs[counting.name]) - (counting.bounds == "offsets")
    sharing = [s.name for s in model.inputs if s.ragged == counting.name]
    none = {name: inputs[name][:0] for name in sharing}
    given = {**inputs, **none, counting.name: bounds_of(counting, np.zeros(bags, np.int64))}
    try:
        model.write(given, n, Answer(model.outputs).empty(n))
    except Exception as error:
        facts.append(Fact(f"input {spec.name}", f"no empty bags: {reason(error)}", "found"))
        return False
    return True


def _failed(path: Path, n: int, error: Exception) -> UserError:
    return UserError(f"{path} fails on an example of {n} candidates: {reason(error)}")


__all__ = ["LARGEST", "try_out"]
