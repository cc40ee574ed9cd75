"""What operators ask of the repository, as the protocol says it: load and unload.

`load_model(name, config=…)` of `tritonclient` sends its `config` as a text, which is JSON of the
words that parameters have. Knows no HTTP and no gRPC.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.serving.repository import Repository
from deeprecsys.serving.source import Asked

LABELS = ("stable", "canary", "shadow")
_WORDS = ("version", "label", "share", "force")


def act(
    repository: Repository, what: str, model: str, parameters: Mapping[str, Any]
) -> Future[None]:
    """what: load, unload or reload. Refusal, raised or the future's: nothing was done."""
    if what == "reload":
        return repository.submit(repository.reload)
    if what == "load":
        return repository.submit(partial(repository.load, model, asked(parameters)))
    known = {"version", "unload_dependents"}
    if other := parameters.keys() - known:
        raise invalid(f"unknown parameter {min(other)[:40]!r}; unload takes version")
    version = _text(parameters, "version")
    return repository.submit(partial(repository.unload, model, version))


def asked(parameters: Mapping[str, Any]) -> Asked:
    """Of a load."""
    said = dict(parameters)
    config = said.pop("config", None)
    if config is not None:
        said |= _read(config)
    for name in said:
        if name.startswith("file:"):
            raise Refusal(Reason.UNSUPPORTED, "models come from their folder, not from a client")
        if name not in _WORDS:
            words = ", ".join(_WORDS)
            raise invalid(f"unknown parameter {name[:40]!r}; load takes {words}")
    label = _text(said, "label") or ("canary" if "share" in said else "stable")
    if label not in LABELS:
        raise invalid(f"label is {', '.join(LABELS)}, not {label[:20]!r}")
    share = said.get("share", 0.1 if label == "canary" else 0.0)
    try:
        share = float(share) if not isinstance(share, bool) else math.nan
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1 or (share and label != "canary"):
        raise invalid("share is a canary's part of the queries, from 0 to 1")
    force = said.get("force", False)
    if not isinstance(force, bool):
        raise invalid("force is true or false")
    return Asked(_text(said, "version"), label, share, force)


def parameters_of(body: bytes) -> Mapping[str, Any]:
    """Those of a request's body, which may be empty."""
    if not body.strip():
        return {}
    said = _json(body)
    found = said.get("parameters", {})
    if not isinstance(found, dict):
        raise invalid("parameters must be an object")
    return found


def _read(config: Any) -> dict[str, Any]:
    if not isinstance(config, str | bytes):
        raise invalid("config must be a text of JSON")
    return _json(config)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("this is no JSON") from None
    if not isinstance(said, dict):
        raise invalid("this must be an object in JSON")
    return said


def _text(said: Mapping[str, Any], name: str) -> str:
    """Versions may be numbers, too."""
    value = said.get(name, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise invalid(f"{name} must be a text")
    return str(value)


__all__ = ["LABELS", "act", "asked", "parameters_of"]
