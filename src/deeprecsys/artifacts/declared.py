"""`model.toml`: what no format can say. Strict: an unknown key is named, with the nearest known.

Knows files and words, no artifact; `derived.py` holds both against each other.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from deeprecsys.core import DTYPES, SLA, Bounds, UserError
from deeprecsys.workload import parse_sizes

FILE = "model.toml"


class DeclaredInput(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """scope: whose it is. ids: how many rows its table has, or the first and the last id. padding:
    an id that stands for none. values: the law of its values: zipf:S or uniform of ids; normal:M,D
    or uniform:A,B of others. bag: the input that says where each candidate's values are, `bounds`
    how that one says it, and lengths the law of how many there are, uniform:A,B.

    datatype and shape (of a candidate's row) where the artifact does not say them.
    """

    scope: Literal["candidate", "query"] | None = None
    ids: int | list[int] | None = None
    padding: int | None = None
    values: str | None = None
    bag: str | None = None
    bounds: Bounds | None = None
    lengths: str | None = None
    datatype: str | None = None
    shape: list[int] | None = None


class DeclaredOutputs(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """score: which output it is. tasks: a name for each of its columns. kind: what it is."""

    score: str | None = None
    tasks: list[str] | None = None
    kind: Literal["probability", "logit"] | None = None


class Target(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    sla_ms: float
    percentile: float = 95.0


class Declared(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """sizes: the law of query sizes, as for --sizes. model: the artifact, where a folder has
    several."""

    name: str | None = None
    model: str | None = None
    target: Target | None = None
    sizes: str | None = None
    inputs: dict[str, DeclaredInput] = {}
    outputs: DeclaredOutputs = DeclaredOutputs()


def read_declared(path: Path) -> Declared:
    """UserError in one line for what cannot be read or meant."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        found = msgspec.convert(raw, Declared)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {_said(str(error))}") from error
    for name, said in found.inputs.items():
        _check(path, name, said)
    try:
        return _checked(found, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _checked(found: Declared, folder: Path) -> Declared:
    """With the law of sizes relative to the folder."""
    if found.name is not None and not re.fullmatch(r"[\w.-]+", found.name):
        raise UserError(f"name is letters, digits, '.', '_' and '-', not {found.name!r}")
    if found.target is not None:
        SLA(found.target.sla_ms / 1e3, found.target.percentile)
    if found.sizes is None:
        return found
    law, _, file = found.sizes.partition(":")
    if law == "file":
        found = msgspec.structs.replace(found, sizes=f"file:{folder / file.strip()}")
    parse_sizes(found.sizes or "")
    return found


_UNKNOWN = re.compile(r"unknown field `(.+?)`(?: - at `\$\.?(.*?)`)?$")


def _said(message: str) -> str:
    """msgspec's own words; of an unknown key, the nearest known one."""
    if (match := _UNKNOWN.search(message)) is None:
        return message
    key, where = match[1], match[2] or ""
    kind: type[msgspec.Struct] = Declared
    if where.startswith("inputs"):
        kind, where = DeclaredInput, "an input"
    elif where in ("outputs", "target"):
        kind = DeclaredOutputs if where == "outputs" else Target
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {key!r}{f' of {where}' if where else ''}; {hint}"


def _check(path: Path, name: str, said: DeclaredInput) -> None:
    where = f"{path}: input {name}"
    if said.datatype is not None and said.datatype not in (*DTYPES, "BYTES"):
        near = difflib.get_close_matches(said.datatype.upper(), DTYPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DTYPES)}"
        raise UserError(f"{where} is of unknown datatype {said.datatype!r}; {hint}")
    if said.shape is not None and any(n < 1 for n in said.shape):
        raise UserError(f"{where}: shape is of a candidate's row, like [80], not {said.shape}")
    ids = said.ids
    if isinstance(ids, int) and ids < 1:
        raise UserError(f"{where}: ids must be the number of rows, or [first, last], not {ids}")
    if isinstance(ids, list) and (len(ids) != 2 or ids[0] > ids[1]):
        raise UserError(f"{where}: ids must be [first, last], not {ids}")
    if said.bag == name:
        raise UserError(f"{where}: bag names the input that says where its values are, not itself")
    if said.lengths is not None and said.bounds is None:
        raise UserError(f"{where}: lengths are of an input that says where bags are: add bounds")
    if said.bag is not None and said.bounds is not None:
        raise UserError(f"{where} is a bag's values or says where they are, not both")


__all__ = ["FILE", "Declared", "DeclaredInput", "DeclaredOutputs", "read_declared"]
