"""How an input's values are drawn, where none are recorded: as `model.toml` says, or as assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import BYTES, InputSpec, UserError
from deeprecsys.workload import IndexLaw, parse_indices
from deeprecsys.workload.options import numbers

Draw = Callable[[np.random.Generator, tuple[int, ...], IndexLaw], NDArray[Any]]
LENGTHS = "uniform:0,20"  # assumed


def law_of(spec: InputSpec, text: str | None) -> Draw:
    """UserError, in one line, for what cannot be meant. Ids go by the law that is asked for when
    they are drawn (--indices), unless they have one of their own."""
    if spec.rows is not None:
        own = None if text is None else parse_indices(text)
        return lambda rng, shape, law: _ids(spec, rng, shape, own or law)
    if spec.dtype.kind == "b":
        return lambda rng, shape, _: rng.random(shape) < 0.5
    if text is None and spec.dtype.kind != "f":
        return _recorded_only
    name, _, options = (text or "normal:0,1").partition(":")
    if name == "uniform":
        low, high = numbers("uniform:A,B", options, ())
        return _uniform(spec, low, high)
    if name == "normal" and spec.dtype.kind == "f":
        mean, deviation = numbers("normal:MEAN,DEVIATION", options, (0.0, 1.0))
        if deviation < 0:
            raise UserError("normal:MEAN,DEVIATION needs a deviation of at least 0")
        return lambda rng, shape, _: _as(spec, mean + deviation * rng.standard_normal(shape))
    kinds = "normal:M,D or uniform:A,B" if spec.dtype.kind == "f" else "uniform:A,B"
    raise UserError(f"its values are {kinds}, not {text!r}")


def _recorded_only(rng: np.random.Generator, shape: tuple[int, ...], law: IndexLaw) -> NDArray[Any]:
    raise UserError("ids are not declared, so there are recorded queries only: none can be drawn")


def _uniform(spec: InputSpec, low: float, high: float) -> Draw:
    if low > high:
        raise UserError("uniform:A,B needs A up to B")
    if spec.dtype.kind == "f":
        return lambda rng, shape, _: _as(spec, rng.uniform(low, high, shape))
    return lambda rng, shape, _: rng.integers(int(low), int(high) + 1, shape).astype(spec.dtype)


def _ids(
    spec: InputSpec, rng: np.random.Generator, shape: tuple[int, ...], law: IndexLaw
) -> NDArray[Any]:
    assert spec.rows is not None
    ids = spec.low + np.asarray(law(rng, spec.rows - spec.low, shape))
    if spec.datatype == BYTES:
        return np.array([str(i).encode() for i in ids.flat], object).reshape(shape)
    return np.ascontiguousarray(ids, spec.dtype)


def _as(spec: InputSpec, values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(spec.dtype)


__all__ = ["LENGTHS", "Draw", "law_of"]
