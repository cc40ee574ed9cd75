"""Which values each input has: what the server says, what a description says, what is assumed.

Pure but for reading a description file. Values come from what the server says (`rows.NAME`,
`scope.NAME`, `ragged.NAME` in its configuration), from a description for other servers, or are
assumed, and then it says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.client.pools import Column, is_float
from deeprecsys.client.server import Description, Tensor
from deeprecsys.core import UserError
from deeprecsys.protocol import tensors

_FIELDS = ("rows", "low", "high", "normal", "scope", "shape", "datatype", "ragged", "counts")
_HINT = 'describe it in --values FILE, as {"%s": {"rows": 40000}}'
_ALL = '{"%s": {"datatype": "INT64", "shape": [3], "rows": 40000}}, with the shape of a candidate'
COUNTS = ("lengths", "ends", "starts", "offsets")
_LENGTHS = (0, 20)  # assumed


def plan(
    described: Description, values: Mapping[str, Any] | None
) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of the model's inputs, and what had to be assumed, one sentence each."""
    given = {name: _checked(name, said) for name, said in (values or {}).items()}
    inputs, assumed = known_inputs(described, given), list[str]()
    if not inputs:
        raise UserError(
            "the server names no inputs of this model: describe each in --values FILE, as "
            + _ALL % "ids"
        )
    ragged = ragged_inputs(inputs, described, given, assumed)
    columns = [
        _column(tensor, given.get(tensor.name, {}), described, ragged, assumed) for tensor in inputs
    ]
    _check_counted(columns)
    if all(column.rows is not None for column in columns):
        assumed.append("no input has a variable first dimension: queries of all sizes are alike")
    return tuple(columns), assumed


def known_inputs(described: Description, values: Mapping[str, Any] | None) -> tuple[Tensor, ...]:
    """The model's inputs as the server and the description together say; () if neither does."""
    given = {name: _checked(name, said) for name, said in (values or {}).items()}
    inputs = described.inputs or tuple(Tensor(name, "", None) for name in given)
    names = [tensor.name for tensor in inputs]
    if unknown := sorted(set(given) - set(names)):
        raise UserError(
            f"--values describes {', '.join(unknown)}; the model's inputs: {', '.join(names)}"
        )
    return tuple(_complete(tensor, given.get(tensor.name, {})) for tensor in inputs)


def ragged_inputs(
    inputs: Sequence[Tensor],
    described: Description,
    given: Mapping[str, Mapping[str, Any]],
    assumed: list[str],
) -> dict[str, str]:
    """By ragged input: which one counts its values. Said, or by their names, values and lengths."""
    names, found = {tensor.name for tensor in inputs}, {}
    for tensor in inputs:
        name = tensor.name
        said = given.get(name, {}).get("ragged", described.parameters.get(f"ragged.{name}"))
        likely = re.sub("values$", "lengths", name)
        if said is None and likely != name and likely in names and name not in given:
            assumed.append(f"{name}: as many for each candidate as {likely} says")
            said = likely
        if said is not None:
            found[name] = said
    for name, counting in found.items():
        if counting not in names or counting in found:
            raise UserError(
                f"--values: {name} is ragged by {counting!r}, which must be another input, "
                f"of {', '.join(sorted(names - set(found)))}"
            )
    return found


def offset_inputs(
    ragged: Mapping[str, str], described: Description, given: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Those that count by offsets, of which there is one more than candidates."""
    counting = sorted(set(ragged.values()))
    return [n for n in counting if _counts(n, given.get(n, {}), described) == "offsets"]


def _counts(name: str, given: Mapping[str, Any], described: Description) -> str:
    return str(given.get("counts", described.parameters.get(f"counts.{name}", "lengths")))


def read_values(path: str) -> dict[str, Any]:
    """A description file: JSON, `{"input": {"rows": 40000}}`."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} as JSON: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f'{path}: write an object, {{"input": {{"rows": 40000}}}}')
    return found


def _complete(tensor: Tensor, given: Mapping[str, Any]) -> Tensor:
    """With what the description says where the server says nothing."""
    said = given.get("datatype", tensor.datatype)
    if tensor.datatype and said != tensor.datatype:
        raise UserError(f"--values: input {tensor.name} is {tensor.datatype}, not {said}")
    shape = tensor.shape
    if shape is None and "shape" in given:
        shape = (-1, *given["shape"])
    if not said or shape is None:
        missing = "datatype" if not said else "shape of a candidate"
        raise UserError(
            f"the server does not say the {missing} of input {tensor.name}: "
            f"describe it in --values FILE, as {_ALL % tensor.name}"
        )
    if said not in tensors.NAMES:
        known = ", ".join(tensors.NAMES)
        raise UserError(f"input {tensor.name} is of unknown datatype {said!r}; known: {known}")
    return Tensor(tensor.name, said, shape)


def _column(
    tensor: Tensor,
    given: Mapping[str, Any],
    described: Description,
    ragged: Mapping[str, str],
    assumed: list[str],
) -> Column:
    name, datatype = tensor.name, tensor.datatype
    said = described.parameters
    if not given and (rows := said.get(f"rows.{name}", "")).isdecimal():
        given = {"rows": int(rows)}
    counts = None
    if name in ragged.values():
        counts = _counts(name, given, described)
        if not {"rows", "low", "normal"} & set(given):
            assumed.append(f"{name}: {_LENGTHS[0]} to {_LENGTHS[1]} for each candidate")
            given = {**given, "low": _LENGTHS[0], "high": _LENGTHS[1]}
    elif "counts" in given:
        raise UserError(f'--values: {name} counts for no input: say "ragged": "{name}" of another')
    scope = given.get("scope", said.get(f"scope.{name}", "candidate"))
    law, a, b = _law(tensor, given, assumed)
    first = tensor.shape[0] if tensor.shape else 1
    rows_sent = 1 if scope == "query" else None if first == -1 else first
    row = _row_shape(tensor, given, assumed)
    return Column(name, datatype, row, rows_sent, law, a, b, ragged.get(name), counts)


def _check_counted(columns: list[Column]) -> None:
    """And a ragged input has as many rows of counts as the input that counts has."""
    by_name = {column.name: column for column in columns}
    for i, column in enumerate(columns):
        if column.counts and (is_float(column.datatype) or math.prod(column.shape) != 1):
            raise UserError(
                f"input {column.name} counts other inputs' values: it must be one whole number a "
                f"candidate, not {column.datatype} {list(column.shape)}"
            )
        if column.counts and (column.a < 0 or column.law == "normal"):
            raise UserError(f'--values: {column.name} counts: give "low" of at least 0 and "high"')
        if column.ragged:
            columns[i] = replace(column, rows=by_name[column.ragged].rows)


def _law(tensor: Tensor, given: Mapping[str, Any], assumed: list[str]) -> tuple[str, float, float]:
    name, datatype = tensor.name, tensor.datatype
    if "rows" in given:
        _check_fits(name, datatype, 0, given["rows"] - 1)
        return "ids", 0, given["rows"]
    if datatype == tensors.BYTES:
        raise UserError(f"input {name} is of BYTES: {_HINT % name} to send ids as text")
    if "low" in given:
        _check_fits(name, datatype, given["low"], given["high"])
        return "uniform", given["low"], given["high"]
    if "normal" in given:
        mean, deviation = given["normal"]
        _check_fits(name, datatype, mean - 6 * deviation, mean + 6 * deviation)
        return "normal", mean, deviation
    if is_float(datatype):
        assumed.append(f"{name}: standard normal")
        return "normal", 0.0, 1.0
    assumed.append(f"{name}: 0 or 1 ({_HINT % name} if it holds ids)")
    return "uniform", 0, 1


def _row_shape(tensor: Tensor, given: Mapping[str, Any], assumed: list[str]) -> tuple[int, ...]:
    """Of one row; a variable dimension is what the description says, or 1."""
    said = (tensor.shape or ())[1:]
    if "shape" in given:
        wanted = tuple(given["shape"])
        if len(wanted) != len(said) or any(
            s not in (-1, w) for s, w in zip(said, wanted, strict=True)
        ):
            raise UserError(
                f"--values: a row of {tensor.name} has shape {list(said)}, not {list(wanted)}"
            )
        return wanted
    if -1 in said:
        assumed.append(f"{tensor.name}: 1 for each variable dimension of a row, {list(said)}")
    return tuple(1 if length == -1 else length for length in said)


def _checked(name: str, given: Any) -> Mapping[str, Any]:
    """A description of one input; UserError for what cannot be meant."""
    if not isinstance(given, Mapping) or set(given) - set(_FIELDS):
        raise UserError(f"--values: {name} takes {', '.join(_FIELDS)}, not {given!r}")
    laws = [law for law in (("rows",), ("low", "high"), ("normal",)) if set(law) & set(given)]
    if len(laws) > 1 or any(set(law) - set(given) for law in laws):
        raise UserError(f"--values: {name} takes rows, or low and high, or normal, not {given!r}")
    numbers = [given[law] for law in ("rows", "low", "high") if law in given]
    pair = given.get("normal", (0, 1))
    counts = [*given.get("shape", ()), *([given["rows"]] if "rows" in given else [])]
    sound = (
        all(_is_number(value) for value in numbers)
        and isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(_is_number(value) for value in pair)
        and pair[1] >= 0
        and all(isinstance(n, int) and n >= 1 for n in counts)
        and given.get("low", 0) <= given.get("high", math.inf)
        and given.get("scope", "query") in ("query", "candidate")
        and given.get("counts", "ends") in COUNTS
        and isinstance(given.get("ragged", ""), str)
    )
    if not sound:
        raise UserError(f"--values: {name} cannot be {given!r}: a number is wrong")
    return given


def _check_fits(name: str, datatype: str, low: float, high: float) -> None:
    dtype = tensors.DTYPES.get(datatype)
    if dtype is None or dtype.kind == "f":
        return
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if low < least or high > most:
        raise UserError(f"--values: {low:g} to {high:g} do not fit input {name}, {datatype}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
