"""How long one request of n items takes on one worker: laws, and measured profiles.

Knows nothing of models or machines: a `ServiceTime` is a function of the number of items, a
`Profile` is samples by batch size and busy workers, and their file. The engine states a law as a
hint (`Facts.service_s`), which capacity searches start from; its profiler fills profiles; the
simulator draws from both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Facts, FloatArray, Policy, UserError, for_json

# How long each stretch of a profile's `Overhead.weather` lasts.
WEATHER_STEP_S = 0.1
Law = Literal["fixed", "exponential", "measured"]


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Mean seconds of a request by its items with all workers busy, and the law around that mean.

    Called with items [n], answers mean seconds [n]. profile: where "measured" spread comes from.
    extrapolate: a request may be larger than the profile's largest.
    """

    mean_s: Callable[[FloatArray], FloatArray]
    law: Law = "fixed"
    text: str = "a law of its own"
    profile: Profile | None = None
    extrapolate: bool = False

    @classmethod
    def constant(cls, seconds: float) -> Self:
        """The same for every request. UserError unless positive and finite."""
        return replace(cls.linear(seconds, 0.0), text=f"constant: {seconds:g} s")

    @classmethod
    def linear(cls, base_s: float, per_item_s: float) -> Self:
        """`base_s + per_item_s * items`. UserError unless finite, >= 0, and not both 0."""
        sound = base_s >= 0 and per_item_s >= 0 and 0 < base_s + per_item_s < math.inf
        if not sound:
            raise UserError(
                "service times must be finite, 0 or more, and not both 0: "
                f"not {base_s:g} s and {per_item_s:g} s an item"
            )
        text = f"linear: {base_s:g} s and {per_item_s:g} s an item"
        return cls(lambda items: base_s + per_item_s * items, text=text)

    @classmethod
    def exponential(cls, mean_s: float) -> Self:
        """Exponentially distributed, whatever the size. UserError unless positive and finite."""
        text = f"exponential: mean {mean_s:g} s"
        return replace(cls.constant(mean_s), law="exponential", text=text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """ "constant:S", "linear:S,S_PER_ITEM" or "exponential:S". UserError, in one line."""
        name, _, options = text.partition(":")
        laws: dict[str, tuple[Callable[..., Self], int]] = {
            "constant": (cls.constant, 1),
            "linear": (cls.linear, 2),
            "exponential": (cls.exponential, 1),
        }
        make, count = laws.get(name, (None, 0))
        try:
            numbers = [float(part) for part in options.split(",")]
        except ValueError:
            numbers = []
        if make is None or len(numbers) != count:
            raise UserError(
                f"cannot read the service time {text!r}: write constant:0.001, "
                "linear:1e-4,1.5e-5 or exponential:0.001, in seconds"
            )
        return make(*numbers)

    @classmethod
    def table(cls, items: NDArray[Any], seconds: NDArray[Any]) -> Self:
        """Measured points, linear between them and, by the last two, beyond them."""
        x, y = np.asarray(items, float), np.asarray(seconds, float)
        if x.size == 1:
            return cls.linear(0.0, float(y[0] / x[0]))
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])

        def mean_s(n: FloatArray) -> FloatArray:
            beyond = np.maximum(np.asarray(n, float) - x[-1], 0.0)
            return np.asarray(np.interp(n, x, y) + slope * beyond)

        return cls(mean_s, text="a table of means")

    @classmethod
    def from_profile(cls, profile: Profile | str | Path, *, extrapolate: bool = False) -> Self:
        """The distributions of a measured profile (or its file), by items and share of busy ones.

        Linear in the items between batch sizes, and in the share between numbers of busy workers.
        A request larger than the profile's largest is a UserError, unless `extrapolate`: then
        the line through the last two batch sizes goes on. UserError for a file that is no
        profile, or an empty one.
        """
        if not isinstance(profile, Profile):
            profile = Profile.load(profile)
        if not profile.points:
            raise UserError("the profile is empty: measure it again")
        text = f"measured: {profile.about.get('model', 'a profile')}"
        mean = cls.table(*profile.mean_s(max(profile.busy_levels)))
        return replace(mean, law="measured", text=text, profile=profile, extrapolate=extrapolate)

    def __call__(self, items: FloatArray) -> FloatArray:
        return self.mean_s(np.asarray(items, float))

    def tables(self, largest: int, workers: int) -> Tables:
        """What a simulation of requests of up to `largest` items draws from.

        UserError where that is beyond the profile.
        """
        items = np.arange(largest + 1, dtype=np.float64)
        if self.profile is None:
            mean_s = np.maximum(self(items), 0.0)[None, :]
            group = np.zeros(largest + 1, np.int32)
            return Tables(mean_s, np.zeros(workers + 1), np.ones((1, 1, 1)), group,
                          self.law == "exponential", np.zeros(1), np.zeros(1), 0.0,
                          np.ones(1))  # fmt: skip
        measured = self.profile.batch_sizes[-1]
        if largest > measured and not self.extrapolate:
            raise UserError(
                f"the profile ends at requests of {measured} items, this asks for {largest}: "
                "choose a smaller batch size, profile larger ones, or allow extrapolation"
            )
        return _measured_tables(self.profile, items, workers)

    def assumptions(self, workers: int) -> list[str]:
        """What a simulation with it takes for granted: sentences for reports."""
        if self.profile is None:
            return [f"service times are {self.text}; no model was measured"]
        about, said = self.profile.about, []
        measured = int(about.get("workers") or max(self.profile.busy_levels))
        said.append(
            f"service times were measured on {about.get('machine', {}).get('cpu', 'a machine')} "
            f"with {measured} workers"
        )
        if workers != measured:
            said.append(
                f"{workers} workers are assumed to slow each other as {measured} did at the same "
                "share of busy ones: memory and caches that grow with the cores"
            )
        if len(self.profile.overhead.weather) > 1:
            said.append("the machine's pace varies as it did while it was profiled")
        if self.extrapolate:
            said.append(
                f"requests of more than {self.profile.batch_sizes[-1]} items are extrapolated"
            )
        return said


class Tables(NamedTuple):
    """Service times as arrays, for kernels: mean by level and items, times spread around it.

    mean_s: [levels, items + 1]. level: [workers + 1], position between levels by the number of
    busy workers. spread: [levels, groups, quantiles] of mean 1. group: [items + 1], the row of
    `spread`. exponential: the spread is that law, exactly. extra_s: [k] seconds on top, by how
    long the worker was idle: at least `idle_s` [k], of which the first is 0. query_s, weather: as
    in `Overhead`.
    """

    mean_s: FloatArray
    level: FloatArray
    spread: FloatArray
    group: NDArray[np.int32]
    exponential: bool
    idle_s: FloatArray
    extra_s: FloatArray
    query_s: float
    weather: FloatArray
    weather_step_s: float = WEATHER_STEP_S


QUANTILES = 256


def drawn_s(tables: Tables, items: int, draw: float) -> float:
    """Seconds of a request on an accelerator, by a draw from 0 .. 1."""
    quantiles = tables.spread.shape[2]
    if quantiles == 1:
        return float(tables.mean_s[-1, items])
    of = tables.spread[-1, tables.group[items]]
    return float(tables.mean_s[-1, items] * of[int(draw * quantiles)])


def _measured_tables(profile: Profile, items: FloatArray, workers: int) -> Tables:
    levels, sizes = profile.busy_levels, profile.batch_sizes
    most = int(profile.about.get("workers") or max(levels))
    means = [ServiceTime.table(*profile.mean_s(busy))(items) for busy in levels]
    # Below the smallest batch size the first line may point under zero.
    floor = min(samples.seconds.min() for samples in profile.points.values())
    share = np.arange(workers + 1) / workers
    nearest = np.abs(np.log(np.maximum(items, 1))[:, None] - np.log(sizes)[None, :]).argmin(axis=1)
    spread = np.ones((len(levels), len(sizes), QUANTILES))
    for i, busy in enumerate(levels):
        for j, batch in enumerate(sizes):
            if (batch, busy) in profile.points:
                spread[i, j] = profile.points[batch, busy].spread()
    overhead = profile.overhead
    idle_s, extra_s = np.array(overhead.by_idle_s).T
    return Tables(
        np.maximum(np.array(means), 0.5 * floor) * (1 + overhead.slower),
        np.interp(share, np.array(levels) / most, np.arange(len(levels))),
        spread,
        nearest.astype(np.int32),
        False,
        idle_s.copy(),
        extra_s.copy(),
        overhead.query_s,
        np.array(overhead.weather),
    )


def query_work_s(
    service_s: Callable[[FloatArray], FloatArray], sizes: NDArray[Any], policy: Policy
) -> FloatArray:
    """Worker-seconds of each query of `sizes` [n] once cut by `policy`: full slices + remainder."""
    full, rest = np.divmod(np.asarray(sizes), policy.batch_size)
    whole = service_s(np.array([float(policy.batch_size)]))[0]
    work: FloatArray = full * whole + np.where(rest > 0, service_s(rest.astype(float)), 0.0)
    return work


def busy_shares(facts: Facts, sizes: NDArray[Any], policy: Policy) -> tuple[float, float]:
    """Seconds that a query, on average, keeps all workers busy, and all accelerators.

    Its inverse is a rate that cannot be held for long. Accelerators are taken to join as many
    queries as the policy lets them. Needs `facts.service_s`.
    """
    facts = facts.of(policy)
    assert facts.service_s is not None
    sizes = np.asarray(sizes)
    threshold = policy.offload_threshold if facts.accelerators else None
    taken = np.zeros(len(sizes), bool) if threshold is None else sizes >= threshold
    cores_s = float(query_work_s(facts.service_s, sizes[~taken], policy).sum())
    rates = [policy.most_items / float(law(np.array([float(policy.most_items)]))[0])
             for law in facts.accelerators]  # fmt: skip
    devices_s = float(sizes[taken].sum()) / sum(rates) if rates else 0.0
    return cores_s / len(sizes) / facts.workers, devices_s / len(sizes)


# What `Profile.about` says of the model.
ABOUT_MODEL = ("model", "variant", "scale", "seed", "query_inputs", "execution")
# What files written before there was such a thing mean.
_ABOUT_BEFORE = {"query_inputs": False, "execution": "exact"}
FORMAT, VERSION = "deeprecsys-profile", 1
Point = tuple[int, int]  # batch size, busy workers


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a live request costs beside its execution in a tight loop.

    by_idle_s: (idle seconds, extra seconds), from that idle time of its worker on; begins at 0.
    query_s: once a query: checking and preparing it takes the time of somebody's core.
    slower: how much longer executing takes than in the loop, as a share of it.
    weather: the machine's slowness in consecutive stretches of `WEATHER_STEP_S`, of mean 1.
    """

    by_idle_s: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    query_s: float = 0.0
    slower: float = 0.0
    weather: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured seconds of single requests, in `rounds` visits at different times."""

    seconds: FloatArray
    rounds: int = 1

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.seconds))

    def percentile_s(self, p: float) -> float:
        return float(np.percentile(self.seconds, p, method="inverted_cdf"))

    def spread(self) -> FloatArray:
        """[QUANTILES] equally likely values of a request's time over its mean; their mean is 1.

        Each is the mean of its share of the sorted samples, so that the slowest keep their weight.
        """
        ordered, n = np.sort(self.seconds), len(self.seconds)
        upto = np.concatenate([[0.0], np.cumsum(ordered)])
        edges = np.interp(np.linspace(0, n, QUANTILES + 1), np.arange(n + 1), upto)
        values = np.diff(edges)
        return np.asarray(values / values.mean())


@dataclass(frozen=True, slots=True)
class Profile:
    """Of one model on one machine; `points` by (batch size, busy workers), back to back.

    about: model, variant, scale, seed, query_inputs, execution, runtime, workers, machine,
    versions, date.
    """

    about: Mapping[str, Any]
    points: Mapping[Point, Samples] = field(default_factory=dict)
    overhead: Overhead = Overhead()

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({batch for batch, _ in self.points})

    @property
    def busy_levels(self) -> list[int]:
        return sorted({busy for _, busy in self.points})

    def with_visit(self, point: Point, seconds: FloatArray) -> Profile:
        """One more visit's samples at a point."""
        before = self.points.get(point, Samples(np.zeros(0), 0))
        merged = Samples(np.concatenate([before.seconds, seconds]), before.rounds + 1)
        return replace(self, points={**self.points, point: merged})

    def with_overhead(self, overhead: Overhead) -> Profile:
        return replace(self, overhead=overhead)

    def mean_s(self, busy: int) -> tuple[FloatArray, FloatArray]:
        """(batch sizes, mean seconds) measured with so many workers busy; UserError if none."""
        sizes = [batch for batch in self.batch_sizes if (batch, busy) in self.points]
        if not sizes:
            raise UserError(f"the profile has no points with {busy} workers busy")
        means = [self.points[batch, busy].mean_s for batch in sizes]
        return np.array(sizes, float), np.array(means)

    def check(self, **expected: Any) -> None:
        """UserError unless `about` says the same of every name given."""
        for name, wanted in expected.items():
            found = self.about.get(name, _ABOUT_BEFORE.get(name))
            if found != wanted:
                raise UserError(
                    f"the profile is of {name.replace('_', ' ')} {found}, not {wanted}: "
                    "measure another with `deeprecsys profile`"
                )

    def to_dict(self) -> dict[str, Any]:
        """Seconds to the nanosecond: exact samples, so that a distribution needs no model."""
        points = [
            {
                "batch_size": batch,
                "busy": busy,
                "rounds": samples.rounds,
                "seconds": [round(s, 9) for s in samples.seconds.tolist()],
            }
            for (batch, busy), samples in sorted(self.points.items())
        ]
        about = for_json(self.about)
        return {
            "format": FORMAT,
            "version": VERSION,
            "about": about,
            "points": points,
            "overhead": for_json(asdict(self.overhead)),
        }

    def save(self, path: str | Path) -> None:
        """Written beside and moved into place, so that an interruption leaves the old file."""
        target = Path(path)
        fresh = target.with_name(target.name + ".new")
        fresh.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        fresh.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """UserError, in one line, if it is no profile, damaged, or of another version."""
        source = Path(path)
        if not source.is_file():
            raise UserError(f"no file {source}")
        try:
            raw = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {source}: {error}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise UserError(f"{source} is no profile: make one with `deeprecsys profile MODEL`")
        if raw.get("version") != VERSION:
            raise UserError(
                f"{source} is a profile of version {raw.get('version')}, this program reads "
                f"version {VERSION}: measure it again"
            )
        try:
            points = dict(_point(entry) for entry in raw["points"])
            return cls(dict(raw["about"]), points, _overhead(raw["overhead"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} is damaged: {error!r}; measure it again") from error


def _overhead(raw: Mapping[str, Any]) -> Overhead:
    pairs = tuple((float(idle_s), float(extra_s)) for idle_s, extra_s in raw["by_idle_s"])
    weather = tuple(map(float, raw["weather"]))
    found = Overhead(pairs, float(raw["query_s"]), float(raw["slower"]), weather)
    numbers = [*sum(pairs, ()), found.query_s, 1 + found.slower, *found.weather]
    if not pairs or not found.weather or not all(0 <= x < math.inf for x in numbers):
        raise ValueError("an overhead that is not made of times")
    return found


def _point(entry: Mapping[str, Any]) -> tuple[Point, Samples]:
    batch, busy, rounds = (int(entry[name]) for name in ("batch_size", "busy", "rounds"))
    seconds = np.asarray(entry["seconds"], dtype=np.float64)
    if min(batch, busy, rounds) < 1 or not seconds.size:
        raise ValueError(f"a point of batch size {batch} with {busy} busy and no samples")
    if not (np.isfinite(seconds).all() and seconds.min() > 0):
        raise ValueError(f"times of batch size {batch} that are not positive")
    return (batch, busy), Samples(seconds, rounds)
