"""Index laws: which rows of an embedding table a query looks up.

A law knows the number of rows and nothing else: no table, no model, no memory. Called by whatever
fills a model's index inputs, once per table, with that caller's generator.

A new law is one callable class with `describe`, one function that reads its options, and one line
in `INDEX_LAWS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, UserError
from deeprecsys.workload.options import no_options, numbers, parse

Shape = int | tuple[int, ...]
RowIds = NDArray[np.int32] | NDArray[np.int64]

# Draws are made in pieces that stay in a core's second-level cache (two columns of 8 bytes each);
# in one piece, every step would stream through memory.
_PIECE = 1 << 15

# Above about 3.8e9 rows, the product of a rank and a stride leaves int64.
MAX_ROWS = 3_000_000_000

# Closer than this to s = 1 the power law loses its digits to cancellation, and its limit differs
# from it by less than one rank in a thousand.
_NEAR_ONE = 1e-6

_GOLDEN = (math.sqrt(5) - 1) / 2


class IndexLaw(Protocol):
    """Which rows are looked up."""

    def __call__(self, rng: np.random.Generator, rows: int, shape: Shape) -> RowIds:
        """Row ids in [0, rows), of `shape`; int32, or int64 where the table is too large for it."""
        ...

    def describe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every row is equally likely: the hardest case for any cache."""

    def __call__(self, rng: np.random.Generator, rows: int, shape: Shape) -> RowIds:
        return rng.integers(0, rows, size=shape, dtype=_dtype(rows))

    def describe(self) -> str:
        return "uniform: every row equally likely, no locality"


@dataclass(frozen=True, slots=True)
class Zipf:
    """Row of rank k (1 the hottest) looked up in proportion to k ** -s, ranks scattered over rows.

    Drawn by inverting the distribution of a density x ** -s on [1/2, rows + 1/2), rounded to the
    nearest rank: any s, no table. For s <= 1 the hottest rank is drawn up to 9 % and the second up
    to 2 % more often than the exact law has it, the others as often within 1 %; at s = 2 the error
    is up to 18 %. In float64 throughout: in float32 only every eighth row or so at the cold end of
    10 million could ever be drawn, a locality that no real table has.

    The default s = 0.92 is a crude fit to Meta's published reuse histograms (2021: 887 M look-ups
    over 128 M rows, of which the rows used more than 64 times are 0.8 % and take 42 % of the
    look-ups; 2022 much the same). It is the slope of that fit and does not meet the point itself:
    over 128 M rows this law gives the hottest 0.8 % of rows 59 % of the look-ups, and s = 0.83
    would give them 42 %. HugeCTR's presets are 0.9, 1.1 and 1.3.
    """

    s: float = 0.92

    def __post_init__(self) -> None:
        if not 0 <= self.s <= 10:
            raise UserError(f"zipf:{self.s:g}: the exponent lies between 0 (uniform) and 10")

    def __call__(self, rng: np.random.Generator, rows: int, shape: Shape) -> RowIds:
        ids = np.empty(shape, dtype=_dtype(rows))
        flat = ids.reshape(-1)
        draw = np.empty(min(_PIECE, flat.size))
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            rank = self._rank_floats(rng.random(out=draw[: piece.size]), rows).astype(np.int64)
            # The last digit of the largest draw may reach rows + 1/2.
            np.minimum(rank, rows - 1, out=rank)
            piece[:] = scatter(rank, rows)
        return ids

    def _rank_floats(self, draw: FloatArray, rows: int) -> FloatArray:
        """Ranks from 0, before their fractions are dropped; works inside `draw`."""
        if abs(1 - self.s) < _NEAR_ONE:
            draw *= math.log(2 * rows + 1)
            np.exp(draw, out=draw)
            draw *= 0.5
        else:
            low, high = self._power(0.5), self._power(rows + 0.5)
            draw *= low - high
            draw += high  # from the cold end, where a steep law needs the digits of small draws
            np.power(draw, 1 / (1 - self.s), out=draw)
        draw -= 0.5
        return draw

    def _power(self, x: float) -> float:
        return float(x ** (1 - self.s))

    def share(self, hottest: int, rows: int) -> float:
        """The share of the look-ups that the `hottest` rows of `rows` take: its distribution."""
        if abs(1 - self.s) < _NEAR_ONE:
            return math.log(2 * hottest + 1) / math.log(2 * rows + 1)
        low = self._power(0.5)
        return (self._power(hottest + 0.5) - low) / (self._power(rows + 0.5) - low)

    def describe(self) -> str:
        source = ", a crude fit to Meta's reuse histograms" if self.s == 0.92 else ""
        return (
            f"zipf: exponent {self.s:g}{source}; hot rows scattered over the table; of a million "
            f"rows the hottest 1 % take {self.share(10_000, 1_000_000):.0%} of the look-ups"
        )


def scatter(rank: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """The row of each rank (0 the hottest): a bijection of [0, rows) that depends on rows alone.

    Multiples of a stride near the golden section of `rows`: any run of consecutive ranks lands
    nearly evenly, so that hot rows share neither a line nor a page while pages are left over.
    Rank 0 is not row 0. Exact up to `MAX_ROWS`.
    """
    return (rank + 1) * _stride(rows) % rows


def uniform(options: str) -> Uniform:
    no_options("uniform", options)
    return Uniform()


def zipf(options: str) -> Zipf:
    """`zipf` (0.92) or `zipf:S`."""
    return Zipf(*numbers("zipf:S", options, (0.92,)))


INDEX_LAWS: dict[str, Callable[[str], IndexLaw]] = {"uniform": uniform, "zipf": zipf}


def parse_indices(spec: str) -> IndexLaw:
    """The law named by "uniform", "zipf" or "zipf:1.1". Raises UserError, one line."""
    return parse("indices", INDEX_LAWS, spec)


@lru_cache(maxsize=1024)
def _stride(rows: int) -> int:
    """A stride coprime to `rows` whose multiples keep their distance from one another.

    The golden section itself would be best, but it is no whole number, and the next coprime one
    may fail: of 10 million rows, the multiples of 6,180,341 return to the row beside the first
    after 8,739 steps. How evenly multiples fall is told by the partial quotients of
    rows / stride: the smaller their largest, the better. So the best of a few candidates is taken;
    64 neighbours always hold a coprime one, as no number below 2^32 has enough prime factors.
    """
    first = max(1, round(rows * _GOLDEN))
    candidates = range(first, max(first + 1, min(first + 64, rows)))
    coprime = [stride for stride in candidates if math.gcd(stride, rows) == 1]
    return min(coprime, key=lambda stride: max(_partial_quotients(rows, stride)))


def _partial_quotients(a: int, b: int) -> list[int]:
    """Of the continued fraction of a / b, by Euclid."""
    quotients = []
    while b:
        quotients.append(a // b)
        a, b = b, a % b
    return quotients


def _dtype(rows: int) -> type[Any]:
    if not 1 <= rows <= MAX_ROWS:
        raise UserError(f"a table needs at least 1 row and at most {MAX_ROWS:.0e}, not {rows}")
    return np.int32 if rows <= 2**31 else np.int64
