"""How long one request of n items takes on one worker: laws, and measured profiles.

Knows nothing of models or machines: a `ServiceTime` is a function of the number of items, a
`Profile` is samples by batch size and busy workers, and their file. The engine states a law as a
hint (`Facts.service_s`), which capacity searches start from; its profiler fills profiles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, Policy, UserError, for_json


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Mean seconds of a request by its items, and the law around that mean.

    Called with items [n], answers mean seconds [n].
    """

    mean_s: Callable[[FloatArray], FloatArray]
    law: Literal["fixed", "exponential"] = "fixed"

    @classmethod
    def constant(cls, seconds: float) -> Self:
        return cls.linear(seconds, 0.0)

    @classmethod
    def linear(cls, base_s: float, per_item_s: float) -> Self:
        """`base_s + per_item_s * items`."""
        if base_s < 0 or per_item_s < 0 or base_s + per_item_s <= 0:
            raise UserError("service time needs base_s >= 0 and per_item_s >= 0, not both 0")
        return cls(lambda items: base_s + per_item_s * items)

    @classmethod
    def exponential(cls, mean_s: float) -> Self:
        """Exponentially distributed, whatever the size."""
        return cls(cls.linear(mean_s, 0.0).mean_s, "exponential")

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

        return cls(mean_s)

    @classmethod
    def from_profile(cls, profile: Profile | str | Path, busy: int | None = None) -> Self:
        """Mean times of a measured profile (or its file), with `busy` workers at it.

        Default: all of them. UserError for a file that is no profile, or no such points.
        """
        if not isinstance(profile, Profile):
            profile = Profile.load(profile)
        if not profile.points:
            raise UserError("the profile is empty: measure it again")
        return cls.table(*profile.mean_s(max(profile.busy_levels) if busy is None else busy))

    def __call__(self, items: FloatArray) -> FloatArray:
        return self.mean_s(np.asarray(items, float))


def query_work_s(
    service_s: Callable[[FloatArray], FloatArray], sizes: NDArray[Any], policy: Policy
) -> FloatArray:
    """Worker-seconds of each query of `sizes` [n] once cut by `policy`: full slices + remainder."""
    full, rest = np.divmod(np.asarray(sizes), policy.batch_size)
    whole = service_s(np.array([float(policy.batch_size)]))[0]
    work: FloatArray = full * whole + np.where(rest > 0, service_s(rest.astype(float)), 0.0)
    return work


FORMAT, VERSION = "deeprecsys-profile", 1
Point = tuple[int, int]  # batch size, busy workers


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


@dataclass(frozen=True, slots=True)
class Profile:
    """Of one model on one machine; `points` by (batch size, busy workers).

    about: model, variant, scale, seed, runtime, workers, machine, versions, date.
    """

    about: Mapping[str, Any]
    points: Mapping[Point, Samples] = field(default_factory=dict)

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
            found = self.about.get(name)
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
        return {"format": FORMAT, "version": VERSION, "about": about, "points": points}

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
            return cls(dict(raw["about"]), dict(_point(entry) for entry in raw["points"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} is damaged: {error!r}; measure it again") from error


def _point(entry: Mapping[str, Any]) -> tuple[Point, Samples]:
    batch, busy, rounds = (int(entry[name]) for name in ("batch_size", "busy", "rounds"))
    seconds = np.asarray(entry["seconds"], dtype=np.float64)
    if min(batch, busy, rounds) < 1 or not seconds.size:
        raise ValueError(f"a point of batch size {batch} with {busy} busy and no samples")
    if not (np.isfinite(seconds).all() and seconds.min() > 0):
        raise ValueError(f"times of batch size {batch} that are not positive")
    return (batch, busy), Samples(seconds, rounds)
