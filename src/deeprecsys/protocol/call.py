"""One inference request as values, whatever it came by. Adapters make it; a server answers it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeprecsys.protocol.tensors import Array


@dataclass(slots=True)
class Call:
    """outputs: the names asked for (None: all), and what the adapter wants to remember of each.
    arrived_s, parsed_s: when its first byte was here, and when it was read, on the server's
    clock."""

    model: str
    version: str
    id: str
    inputs: dict[str, Array]
    datatypes: Mapping[str, str]
    outputs: Mapping[str, bool] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    arrived_s: float = math.nan
    parsed_s: float = math.nan
