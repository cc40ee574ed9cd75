"""What everything else is said in: arrays, the user's error, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Inputs = Mapping[str, NDArray[Any]]


class UserError(ValueError):
    """The request was wrong: one line that says what, and how to mend it (exit code 2)."""


def for_json(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null, at any depth; tuples become lists."""
    if isinstance(value, Mapping):
        return {name: for_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
