"""`serve --config FILE`: models and the server's options from a file in TOML.

`[server]` holds options of `serve` under their names, `[models.NAME]` those of a model, of which
only `model` must be there. What is given on the command line beside it goes before what it says.
Paths are as from the file's own folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprecsys.cli.hosting import Entry
from deeprecsys.core import UserError

if TYPE_CHECKING:
    from deeprecsys.cli.serve import Wanted

_PATHS = ("policy", "tls_cert", "tls_key", "key_file", "record", "record_schedule", "uds",
          "grpc_uds", "tls_client_ca", "json_file")  # fmt: skip
_NOT_KEYS = ("name", "where")
# Of the command line alone, or of models.
_NOT_SERVER = {"models", "config", *(f.name for f in fields(Entry))} - {"accelerator"}


def read(path: str, wanted: Wanted) -> tuple[Wanted, list[Entry]]:
    """UserError where it cannot be read, says something unknown, or names no model."""
    try:
        said = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    _check_known(path, "", said, ("server", "models"))
    server, models = said.get("server", {}), said.get("models", {})
    for where, table in (("server", server), ("models", models)):
        if not isinstance(table, dict):
            raise UserError(f"{path}: [{where}] must be a table")
    if not models:
        raise UserError(f'{path} names no model: add [models.NAME] with model = "…"')
    folder = Path(path).parent
    wanted = _with(wanted, path, folder, server)
    return wanted, [_entry(path, folder, name, table) for name, table in models.items()]


def _with(wanted: Wanted, path: str, folder: Path, said: Mapping[str, Any]) -> Wanted:
    defaults = {f.name: f.default for f in fields(wanted) if f.name not in _NOT_SERVER}
    _check_known(path, "server.", said, defaults)
    given = {
        name: _value(path, f"server.{name}", folder, name, value, defaults[name])
        for name, value in said.items()
        if getattr(wanted, name) == defaults[name]  # not on the command line
    }
    return replace(wanted, **given)


def _entry(path: str, folder: Path, name: str, said: Any) -> Entry:
    where = f"models.{name}"
    if not isinstance(said, dict):
        raise UserError(f"{path}: [{where}] must be a table")
    defaults = {f.name: f.default for f in fields(Entry) if f.name not in _NOT_KEYS}
    _check_known(path, f"{where}.", said, defaults)
    if "model" not in said:
        raise UserError(f"{path}: [{where}] needs model, a published one's name or a path")
    given = {
        key: _value(path, f"{where}.{key}", folder, key, value, defaults[key])
        for key, value in said.items()
    }
    model = given["model"]
    if ("/" in model or model.startswith(".")) and not Path(model).is_absolute():
        given["model"] = str(folder / model)
    return Entry(name=name, where=f"{path}, [{where}]: ", **given)


def _value(path: str, where: str, folder: Path, key: str, value: Any, default: Any) -> Any:
    """As its option would have it; UserError where it is of another kind."""
    kind: Any
    if isinstance(default, bool):
        kind, what = bool, "true or false"
    elif key in _NUMBERS or isinstance(default, (int, float)):
        kind, what = (int, float), "a number"
    elif isinstance(default, tuple) or key == "accelerator":
        kind, what = list, "a list"
    else:
        kind, what = str, "a text"
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(default, int) and isinstance(value, float)):
        raise UserError(f"{path}: {where} must be {what}, not {value!r}")
    if key in _PATHS and not Path(value).is_absolute():
        return str(folder / value)
    return value


_NUMBERS = ("batch_size", "sla_ms", "percentile", "deadline_ms", "workers", "max_qps_per_client")


def _check_known(path: str, where: str, said: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in said:
        if key not in known:
            near = get_close_matches(key, known, 1, 0.5)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"{path}: unknown {where}{key}; {meant}")


__all__ = ["read"]
