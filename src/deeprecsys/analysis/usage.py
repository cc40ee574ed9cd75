"""What a run used: how busy cores and accelerators were, what went to which, and the energy.

Energy is measured where the machine has meters; what has none is modelled from stated watts and
the measured time at work, and is labelled so. Pure: from records and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from deeprecsys.core import FloatArray, IntArray, Records, Requests, UserError

CORES = "cores"


@dataclass(frozen=True, slots=True)
class Watts:
    """Of one core, and of one accelerator: idle, and at work.

    The defaults are assumptions. A core at work: 7.5 W, the 150 W that Intel states for a Xeon
    Gold 6148 over its 20 cores (memory, fans and supply left out). An accelerator: 250 W, NVIDIA's
    figure for a GTX 1080 Ti. Idle: 30 % and 20 % of that.
    """

    core_idle: float = 2.25
    core_busy: float = 7.5
    accelerator_idle: float = 50.0
    accelerator_busy: float = 250.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """ "core=IDLE:BUSY,accelerator=IDLE:BUSY", either of them; UserError."""
        given: dict[str, float] = {}
        for part in text.split(","):
            name, _, pair = part.strip().partition("=")
            idle, _, busy = pair.partition(":")
            try:
                low, high = float(idle), float(busy)
                if name not in ("core", "accelerator") or not 0 <= low <= high < np.inf:
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"cannot read {part!r}: write core=IDLE:BUSY,accelerator=IDLE:BUSY in watts, "
                    "idle not above busy"
                ) from None
            given |= {f"{name}_idle": low, f"{name}_busy": high}
        return cls(**given)

    def __str__(self) -> str:
        return (
            f"core {self.core_idle:g} to {self.core_busy:g} W, accelerator "
            f"{self.accelerator_idle:g} to {self.accelerator_busy:g} W"
        )


def usage(
    records: Records,
    requests: Requests,
    workers: int,
    accelerators: Sequence[Mapping[str, Any]] = (),
    *,
    watts: Watts | None = None,
    measured: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """For summaries. accelerators: what each says of itself (name, emulated). measured: joules by
    "cores" and by accelerators' names; what is missing is modelled.

    busy: share of the time from the run's begin to its last finish. share_of_queries and
    share_of_items: of those answered, that the accelerator executed.
    """
    watts, measured = watts or Watts(), measured or {}
    duration_s = float(requests.finish_s.max(initial=0.0))
    if not duration_s:
        return {}
    by = _busy_s(requests, workers + len(accelerators)) / duration_s
    answered = records.device[~np.isnan(records.finish_s)]
    size = records.size[~np.isnan(records.finish_s)]
    items = np.bincount(answered, size, len(accelerators) + 1)
    queries = np.bincount(answered, minlength=len(accelerators) + 1)
    mine = by[:workers]
    power_w = workers * watts.core_idle + mine.sum() * (watts.core_busy - watts.core_idle)
    joules = [measured.get(CORES, float(power_w * duration_s))]
    devices = []
    for k, device in enumerate(accelerators):
        busy = float(by[workers + k])
        devices.append({
            "name": device["name"],
            "emulated": device["emulated"],
            "busy": busy,
            "share_of_queries": float(queries[k + 1] / max(queries.sum(), 1)),
            "share_of_items": float(items[k + 1] / max(items.sum(), 1)),
        })  # fmt: skip
        power_w = watts.accelerator_idle + busy * (watts.accelerator_busy - watts.accelerator_idle)
        joules.append(measured.get(device["name"], float(power_w * duration_s)))
    names = dict.fromkeys([CORES, *(device["name"] for device in devices)])
    modelled = [name for name in names if name not in measured]
    return {
        "duration_s": duration_s,
        "cores_busy": float(mine.mean()),
        "accelerators": devices,
        "energy": {
            "watts": sum(joules) / duration_s,
            "joules": joules,  # of the cores, then of each accelerator
            "queries_per_joule": len(answered) / sum(joules) if sum(joules) else None,
            "modelled": modelled,
            "measured": [name for name in names if name in measured],
            "model": str(watts) if modelled else None,
        },
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    if not found:
        return []
    said = [f"workers {found['cores_busy']:.0%} busy"]
    for device in found["accelerators"]:
        emulated = "emulated " if device["emulated"] else ""
        said.append(
            f"{emulated}{device['name']} {device['busy']:.0%} busy with "
            f"{device['share_of_queries']:.0%} of the queries, "
            f"{device['share_of_items']:.0%} of the items"
        )
    energy = found["energy"]
    if energy["queries_per_joule"] is not None:
        how = [f"{', '.join(energy['measured'])} measured"] if energy["measured"] else []
        if energy["modelled"]:
            how.append(f"{', '.join(energy['modelled'])} modelled: {energy['model']}")
        said.append(
            f"{energy['queries_per_joule']:.3g} queries/s per watt, {energy['watts']:.3g} W "
            f"({'; '.join(how)})"
        )
    return said


def _busy_s(requests: Requests, devices: int) -> FloatArray:
    """[devices] Seconds at work; a request that joined queries is one row for each of them."""
    key: IntArray = np.lexsort((requests.start_s, requests.worker))
    who, start_s, finish_s = (
        column[key] for column in (requests.worker, requests.start_s, requests.finish_s)
    )
    first = np.ones(len(who), bool)
    first[1:] = (who[1:] != who[:-1]) | (start_s[1:] != start_s[:-1])
    # An accelerator may have two requests under way: only the time that is not shared counts.
    ended = np.zeros(len(who))
    same = np.concatenate([[False], who[1:] == who[:-1]])
    ended[1:] = np.where(same[1:], finish_s[:-1], 0.0)
    alone_s = finish_s - np.maximum(start_s, np.minimum(ended, finish_s))
    return np.bincount(who, np.where(first, alone_s, 0.0), devices).astype(np.float64)
