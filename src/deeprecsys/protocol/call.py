"""One inference request as values, whatever it came by. Adapters make it; a server answers it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.shared import Target
from deeprecsys.protocol.tensors import Array

_UNSUPPORTED = ("classification",)


@dataclass(slots=True)
class Call:
    """outputs: the names asked for (None: all), and what the adapter wants to remember of each.
    targets: those that go to shared memory, by name.
    arrived_s, parsed_s: when its first byte was here, and when it was read, on the server's
    clock. until_s: when the client stops waiting, on that clock. client: who asks, a key or an
    address, by whatever the adapter tells clients apart. hosted: the server's word for who answers
    it. trace: its word for the trace that it is part of; None: it is not traced."""

    model: str
    version: str
    id: str
    inputs: dict[str, Array]
    datatypes: Mapping[str, str]
    outputs: Mapping[str, bool] | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    arrived_s: float = math.nan
    parsed_s: float = math.nan
    until_s: float = math.inf
    client: str = ""
    hosted: Any = None
    trace: Any = None


def refuse_unsupported(parameters: Mapping[str, Any]) -> None:
    """Of an input or an output."""
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise invalid(f"parameter {name} is not supported: send and take the data themselves")
