"""`Workload`: sizes, arrivals, indices and a seed, as text; a `Schedule` on request.

Knows nothing of models, machines or policies, and keeps no state: every call starts the seed's
streams anew, so equal workloads give equal schedules, in any order and any process. Called by
the command line, the capacity search and users.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from deeprecsys.core import DEFAULT_INDICES, FloatArray, IntArray, Schedule, UserError
from deeprecsys.workload.arrivals import ArrivalLaw, Replay, parse_arrivals
from deeprecsys.workload.indices import IndexLaw, parse_indices
from deeprecsys.workload.sizes import SizeLaw, empirical, parse_sizes

# Of each seed, one stream for each use, so that none disturbs another. The order is part of what
# a seed means: append only.
Stream = Literal["sizes", "arrivals", "indices"]
_STREAMS: tuple[Stream, ...] = ("sizes", "arrivals", "indices")

# So many pieces, that a summary can tell how they vary; and no piece is large or tiny.
_PIECES, _SHORTEST_PIECE, _LONGEST_PIECE = 64, 64, 1 << 17

# 1.6 GB of schedule; beyond it, a rate and a duration were most likely mistyped.
MAX_QUERIES = 100_000_000


@dataclass(frozen=True)
class Workload:
    """What is asked of a system, but for the rate.

    sizes, arrivals, indices: laws as text, see `SIZE_LAWS`, `ARRIVAL_LAWS`, `INDEX_LAWS`.
    seed: a whole number from 0.

    The same seed at another rate gives the same sizes and (poisson, constant, bursty) the same
    gaps, scaled; a longer schedule begins with the shorter one. Raises UserError, in one line, for
    whatever cannot be read. Files are read once, here.
    """

    sizes: str = "production"
    arrivals: str = "poisson"
    indices: str = DEFAULT_INDICES
    seed: int = 0
    size_law: SizeLaw = field(init=False, repr=False, compare=False)
    arrival_law: ArrivalLaw = field(init=False, repr=False, compare=False)
    index_law: IndexLaw = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _count("seed", self.seed, least=0))
        object.__setattr__(self, "arrival_law", parse_arrivals(self.arrivals))
        object.__setattr__(self, "size_law", self._sizes())
        object.__setattr__(self, "index_law", parse_indices(self.indices))

    def schedule(
        self,
        rate_qps: float | None = None,
        duration_s: float | None = None,
        queries: int | None = None,
    ) -> Schedule:
        """Arrivals up to and including `duration_s`, at most `queries` of them.

        Give one of the two, or both for whichever ends first. A trace may be given neither, and
        ends where it ends; without a rate it keeps its own times, with one it is stretched so that
        the whole of it has that mean. Raises UserError for what is missing, not positive or not
        finite.
        """
        rate = self._rate(rate_qps)
        limit = MAX_QUERIES if queries is None else _count("queries", queries, least=1)
        until_s = math.inf if duration_s is None else _positive("duration_s", duration_s)
        if queries is None and duration_s is None and not self._trace:
            raise UserError("how long? give duration_s, or queries, or both")
        arrival_s = self._arrivals(rate, until_s, limit)
        return Schedule(arrival_s, self._sizes_of(len(arrival_s)), self.indices)

    def pieces(
        self,
        rate_qps: float | None = None,
        duration_s: float | None = None,
        queries: int | None = None,
    ) -> Iterator[Schedule]:
        """The same schedule in pieces that follow each other: for runs too long for memory."""
        rate = self._rate(rate_qps)
        limit = math.inf if queries is None else _count("queries", queries, least=1)
        until_s = math.inf if duration_s is None else _positive("duration_s", duration_s)
        if queries is None and duration_s is None and not self._trace:
            raise UserError("how long? give duration_s, or queries, or both")
        expected = min(limit, rate * until_s, len(self._trace.size) if self._trace else math.inf)
        n = int(min(max(expected / _PIECES, _SHORTEST_PIECE), _LONGEST_PIECE))
        sizes, given = self.generator("sizes"), 0
        for arrival_s in self.arrival_law.pieces(self.generator("arrivals"), rate, n):
            wanted = int(min(len(arrival_s), limit - given))
            ends = int(np.searchsorted(arrival_s, until_s, side="right"))
            kept = min(wanted, ends)
            if self._trace:
                size = self._trace.size[given : given + kept]
            else:
                size = self.size_law.sample(sizes, kept)
            given += kept
            if kept:
                yield Schedule(arrival_s[:kept], size, self.indices)
            if kept < len(arrival_s) or given == limit:
                return

    def sample_sizes(self, n: int) -> IntArray:
        """[n] int64 sizes: those of a schedule of n queries (of a trace: drawn from its sizes)."""
        return self.size_law.sample(self.generator("sizes"), _count("n", n, least=0))

    def generator(self, stream: Stream) -> np.random.Generator:
        """A new generator at the start of one of the seed's streams.

        "indices" is not used here: it is for whoever draws rows with `index_law`.
        """
        key = (_STREAMS.index(stream),)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def reseed(self, seed: int) -> Workload:
        """The same laws with another seed."""
        return replace(self, seed=seed)

    def describe(self) -> dict[str, str]:
        """What each law is, and which of its numbers are assumptions: sentences for reports."""
        return {
            "sizes": self.size_law.describe(),
            "arrivals": self.arrival_law.describe(),
            "indices": self.index_law.describe(),
        }

    def to_dict(self) -> dict[str, Any]:
        """For `summary.json`: the four arguments that make it again, and `notes`."""
        return {
            "sizes": self.sizes,
            "arrivals": self.arrivals,
            "indices": self.indices,
            "seed": self.seed,
            "notes": self.describe(),
        }

    @property
    def _trace(self) -> Replay | None:
        return self.arrival_law if isinstance(self.arrival_law, Replay) else None

    def _sizes(self) -> SizeLaw:
        if not self._trace:
            return parse_sizes(self.sizes)
        if self.sizes != type(self).sizes:
            raise UserError(f"a trace brings its own sizes: leave out sizes {self.sizes!r}")
        return empirical(f"the sizes of {self._trace.path}", np.sort(self._trace.size))

    def _sizes_of(self, n: int) -> IntArray:
        return self._trace.size[:n] if self._trace else self.sample_sizes(n)

    def _rate(self, rate_qps: float | None) -> float:
        if rate_qps is not None:
            return _positive("rate_qps", rate_qps)
        if self._trace and not self._trace.timed:
            raise UserError(f"{self._trace.path} says no times: give a rate, rate_qps or --qps")
        if self._trace:
            return self._trace.rate_qps
        raise UserError("at which rate? give rate_qps; only a replayed trace has a rate of its own")

    def _arrivals(self, rate_qps: float, until_s: float, limit: int) -> FloatArray:
        """Times up to `until_s`: as many as will most likely do, more if they did not."""
        expected = rate_qps * until_s
        if not self._trace and min(expected, limit) >= MAX_QUERIES:
            raise UserError(
                f"that is {min(expected, limit):.3g} queries: ask for fewer than {MAX_QUERIES:.0e}"
            )
        n = min(limit, int(min(expected + 5 * math.sqrt(expected) + 16, MAX_QUERIES)))
        while True:
            times = next(self.arrival_law.pieces(self.generator("arrivals"), rate_qps, n))
            if n == limit or len(times) < n or times[-1] > until_s:
                return times[: np.searchsorted(times, until_s, side="right")]
            n = min(limit, 2 * n)


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, int | float | np.number) and math.isfinite(value) and value > 0):
        raise UserError(f"{name} must be a positive, finite number, not {value!r}")
    return float(value)


def _count(name: str, value: int, least: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return count
