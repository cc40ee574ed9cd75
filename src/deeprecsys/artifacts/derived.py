"""What the artifact says and what is declared, held against each other: a model's inputs.

Pure. Each fact is told with where it is from: found in the artifact, recorded, declared, assumed;
or missing, with the line that says it. `inspect` prints them; `open_model` refuses what lacks one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deeprecsys.artifacts.declared import FILE, Declared, DeclaredInput
from deeprecsys.artifacts.form import Found, Shape, Tensor
from deeprecsys.artifacts.laws import LENGTHS, Draw, law_of
from deeprecsys.artifacts.samples import Samples
from deeprecsys.core import BYTES, DTYPES, Bounds, InputSpec, UserError
from deeprecsys.workload import parse_indices

Kind = Literal["found", "recorded", "declared", "assumed", "missing"]
# Beside the inputs of a recorded query.
ASIDE = ("scores", "score", "labels", "label", "size")


@dataclass(frozen=True, slots=True)
class Fact:
    """`where`: "input user_id"; `what`: "INT64 [N, 1]"."""

    where: str
    what: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Derived:
    """inputs: () where something is missing. laws: of each input's values, or of bags' lengths."""

    inputs: tuple[InputSpec, ...]
    laws: dict[str, Draw]
    facts: tuple[Fact, ...]

    @property
    def missing(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.kind == "missing"]


def derive(path: Path, found: Found, declared: Declared, samples: Samples | None) -> Derived:
    """UserError where what is declared contradicts the artifact."""
    facts: list[Fact] = []
    tensors = found.inputs or _named(found, declared, samples, facts)
    _check_names(path, tensors, declared)
    one = _Derivation(path, tensors, declared, samples, facts)
    specs = [one.input(tensor) for tensor in tensors]
    for tensor, spec in zip(tensors, specs, strict=True):
        if spec.datatype == BYTES and tensor.datatype is None and not found.text:
            raise UserError(f"input {spec.name} is BYTES, text, which {path.name} does not take")
    one.check_bags(specs)
    if any(fact.kind == "missing" for fact in facts):
        return Derived((), {}, tuple(facts))
    laws = {spec.name: one.draw(spec) for spec in specs}
    return Derived(tuple(specs), laws, tuple(facts))


def _named(
    found: Found, declared: Declared, samples: Samples | None, facts: list[Fact]
) -> tuple[Tensor, ...]:
    """Of an artifact that takes any number of inputs."""
    if found.inputs is None and declared.inputs:
        names, kind = list(declared.inputs), "declared"
    elif found.inputs is None and samples is not None:
        names, kind = [n for n in samples.names() if n not in ASIDE], "recorded"
    else:
        line = f"[inputs.NAME] in {FILE}, for each in the order in which the model takes them"
        facts.append(Fact("inputs", f"their names: add {line}", "missing"))
        return ()
    facts.append(Fact("inputs", f"in this order: {', '.join(names)}", kind))  # type: ignore[arg-type]
    return tuple(Tensor(name) for name in names)


def _check_names(path: Path, tensors: Sequence[Tensor], declared: Declared) -> None:
    names = [tensor.name for tensor in tensors]
    for name, said in declared.inputs.items():
        for other in [name, *([said.bag] if said.bag else [])]:
            if names and other not in names:
                near = difflib.get_close_matches(other, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
                raise UserError(f"{FILE} names input {other!r}, which {path.name} lacks; {hint}")


@dataclass(frozen=True, slots=True)
class _Derivation:
    path: Path
    tensors: Sequence[Tensor]
    declared: Declared
    samples: Samples | None
    facts: list[Fact]

    def input(self, tensor: Tensor) -> InputSpec:
        said = self.declared.inputs.get(tensor.name, DeclaredInput())
        datatype = self._datatype(tensor, said)
        spec = InputSpec(
            tensor.name, datatype or "FP32", self._row(tensor, said), self._scope(tensor, said),
            ragged=said.bag, bounds=self._bounds(tensor, said),
        )  # fmt: skip
        return self._ids(spec, said) if datatype else spec

    def draw(self, spec: InputSpec) -> Draw:
        try:
            return law_of(spec, self.law(spec))
        except UserError as error:
            raise UserError(f"{FILE}: input {spec.name}: {error}") from None

    def law(self, spec: InputSpec) -> str | None:
        said = self.declared.inputs.get(spec.name, DeclaredInput())
        if spec.bounds:
            text = said.lengths or LENGTHS
            if said.lengths is None and self.samples is None:
                self._tell(spec.name, f"lengths of bags {LENGTHS}", "assumed")
            return text
        if spec.rows is not None and said.values is not None:
            parse_indices(said.values)
        return said.values

    def check_bags(self, specs: list[InputSpec]) -> None:
        """A bag's values are counted by an input that says how."""
        by_name = {spec.name: spec for spec in specs}
        for i, spec in enumerate(specs):
            if spec.ragged is None:
                continue
            counting = by_name[spec.ragged]
            if counting.bounds is None:
                how = 'bounds = "starts" (or "offsets", "ends", "lengths")'
                self._missing(counting.name, f"how it says where bags are: add {how}")
            elif counting.shape != () or counting.dtype.kind not in "iu":
                raise UserError(
                    f"{FILE}: input {counting.name} says where bags are, so it must be one whole "
                    f"number a candidate, not {counting.datatype} {list(counting.shape)}"
                )
            specs[i] = replace(spec, scope=counting.scope)

    def _datatype(self, tensor: Tensor, said: DeclaredInput) -> str | None:
        """None where nobody says it, which is told."""
        name = tensor.name
        if tensor.datatype is not None:
            if said.datatype not in (None, tensor.datatype):
                raise UserError(
                    f"{FILE} says that input {name} is {said.datatype}; {self.path.name} takes "
                    f"{tensor.datatype}"
                )
            self._tell(name, tensor.datatype, "found")
            return tensor.datatype
        if said.datatype is not None:
            self._tell(name, said.datatype, "declared")
            return said.datatype
        if self.samples is not None and self.samples.has(name):
            datatype = _datatype_of(self.samples.first(name))
            self._tell(name, datatype, "recorded")
            return datatype
        self._missing(name, 'its datatype: add datatype = "INT64" (or "FP32", ...)')
        return None

    def _row(self, tensor: Tensor, said: DeclaredInput) -> tuple[int, ...]:
        """The shape of a candidate's row: found, and what is free in it declared or recorded."""
        name, given = tensor.name, None if said.shape is None else tuple(said.shape)
        bag = said.bag is not None or said.bounds is not None
        if given is None and self.samples is not None and self.samples.has(name):
            first = self.samples.first(name)
            given = first.shape[1:]
            kind: Kind = "recorded"
        else:
            kind = "declared"
        if tensor.shape is not None:
            row: Shape = tensor.shape[1:]
            if None not in row:
                if given not in (None, row) and said.shape is not None:
                    raise UserError(
                        f"{FILE} says that a row of input {name} has shape {list(given or ())}; of "
                        f"{self.path.name} it has {list(row)}"
                    )
                leading = "N" if self._leading(tensor) else "1"
                self._tell(name, f"[{leading}{''.join(f', {n}' for n in row)}]", "found")
                return tuple(n for n in row if n is not None)
            if given is not None and len(given) == len(row):
                row = given
            elif given is None:
                free = ["?" if n is None else str(n) for n in row]
                self._missing(name, f"its row's shape [{', '.join(free)}]: add shape = [..]")
                return (1,) * len(row)
        elif given is None and bag:
            row = ()
        elif given is None:
            line = "add shape = [] (of [N]), [1] (of [N, 1]), [80]"
            self._missing(name, f"the shape of a candidate's row: {line}")
            return ()
        else:
            row = given
        self._tell(name, f"[N{''.join(f', {n}' for n in row)}]", kind)
        return tuple(n for n in row if n is not None)

    def _scope(self, tensor: Tensor, said: DeclaredInput) -> Literal["candidate", "query"]:
        name = tensor.name
        if said.scope is not None:
            self._tell(name, f"scope {said.scope}", "declared")
            return said.scope
        if not self._leading(tensor):
            self._tell(name, "scope query", "found")
            return "query"
        if self._recorded_once(name):
            self._tell(name, "scope query", "recorded")
            return "query"
        self._tell(name, "scope candidate", "assumed")
        return "candidate"

    def _leading(self, tensor: Tensor) -> bool:
        """Is it one row a candidate, or at least not one row where others have several?"""
        others = [t.shape for t in self.tensors if t.shape and t.shape[0] != 1]
        return not (tensor.shape and tensor.shape[0] == 1 and others)

    def _recorded_once(self, name: str) -> bool:
        """One row in a recorded query of several candidates."""
        if self.samples is None or not self.samples.has(name):
            return False
        names = [t.name for t in self.tensors if self.samples.has(t.name)]
        rows = {n: self.samples.first(n).shape[:1] for n in names}
        return rows[name] == (1,) and any(r[0] > 1 for r in rows.values() if r)

    def _bounds(self, tensor: Tensor, said: DeclaredInput) -> Bounds | None:
        if said.bounds is not None:
            self._tell(tensor.name, f"says where bags are, by {said.bounds}", "declared")
        return said.bounds

    def _ids(self, spec: InputSpec, said: DeclaredInput) -> InputSpec:
        """With the range of its ids, if it has any."""
        name, ids = spec.name, said.ids
        if spec.bounds or spec.dtype.kind in "bf":
            if ids is not None and not (spec.dtype.kind == "f" and spec.shape == (1,)):
                raise UserError(f"{FILE}: input {name} is {spec.datatype}, which is no id")
            if said.padding is not None:
                raise UserError(f"{FILE}: input {name} has no ids, so no padding")
            if said.values is not None:
                self._tell(name, f"values {said.values}", "declared")
            elif spec.dtype.kind == "f" and self.samples is None:
                self._tell(name, "values standard normal", "assumed")
            return spec
        if ids is not None:
            low, last = (0, ids - 1) if isinstance(ids, int) else ids
            _check_fits(spec, low, last)
            if said.padding is not None:
                _check_fits(spec, said.padding, said.padding)
            self._tell(name, f"ids {low} to {last}", "declared")
            if said.padding is not None:
                self._tell(name, f"padding {said.padding}", "declared")
            return replace(spec, rows=last + 1, low=low, padding=said.padding)
        if said.values is not None and spec.datatype != BYTES:
            self._tell(name, f"values {said.values}", "declared")
        elif self.samples is not None and self.samples.has(name):
            self._tell(name, "ids as recorded; others are not refused", "recorded")
        else:
            line = "its valid ids: add ids = ROWS (or [FIRST, LAST])"
            self._missing(name, line, ", or recorded queries beside it (samples.jsonl)")
        return spec

    def _tell(self, name: str, what: str, kind: Kind) -> None:
        self.facts.append(Fact(f"input {name}", what, kind))

    def _missing(self, name: str, what: str, instead: str = "") -> None:
        where = f"{what} under [inputs.{name}] in {FILE}{instead}"
        self.facts.append(Fact(f"input {name}", where, "missing"))


def _check_fits(spec: InputSpec, low: int, last: int) -> None:
    if spec.datatype == BYTES:
        return
    limits = np.iinfo(spec.dtype)
    if low < limits.min or last > limits.max:
        raise UserError(
            f"{FILE}: ids {low} to {last} do not fit input {spec.name}, {spec.datatype}"
        )


def _datatype_of(array: NDArray[Any]) -> str:
    """Lists in files of JSON have no types: whole numbers are INT64, others FP32."""
    if array.dtype.kind in "OSU":
        return BYTES
    if array.dtype == np.float64:
        return "FP32"
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


__all__ = ["ASIDE", "Derived", "Fact", "derive"]
