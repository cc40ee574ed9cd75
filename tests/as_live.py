"""A simulated machine that counts as a live one: its time is waited for, and its runs are watched.

`benchmarks/truth.py` measures with it how often intervals hold the truth.
"""

from __future__ import annotations

import math

import numpy as np

from deeprecsys.core import Facts, Policy, Records, Schedule, Status, Watch, replace
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import Clock

_LOOK_S = 0.1


class AsLive:
    """A simulator that passes for a live machine: its time is waited for, on `clock`.

    twin: what it thinks of itself, as an engine does by its measured service time.
    """

    def __init__(self, simulator: Simulator, twin: Simulator | None = None) -> None:
        self.simulator, self.twin, self.now_s, self.runs = simulator, twin, 0.0, 0

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self._pass)

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds

    def facts(self) -> Facts:
        return replace(self.simulator.facts(), virtual=False, twin=self.twin)

    def disturbance(self) -> float:
        return 0.0

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        self.runs += 1
        # Another run is another moment: service times are not those of the same queries before.
        self.simulator.seed = self.runs
        records, began_s = self.simulator.run(schedule, policy), self.now_s
        ends_s = float(np.nanmax(records.finish_s, initial=0.0))
        for now_s in np.arange(_LOOK_S, ends_s, _LOOK_S):
            self.now_s = began_s + now_s
            if watch is not None and watch(_at(records, now_s, Status.PENDING), now_s):
                return _at(records, now_s, Status.CANCELLED)
        self.now_s = began_s + ends_s
        return records


def _at(records: Records, now_s: float, unfinished: Status) -> Records:
    """What is known at a moment of the queries that have arrived."""
    seen = records[: int(np.searchsorted(records.arrival_s, now_s, side="right"))]
    late = seen.finish_s > now_s
    return replace(
        seen,
        finish_s=np.where(late, math.nan, seen.finish_s),
        status=np.where(late, unfinished, seen.status).astype(np.int8),
    )
