"""One simulated machine: any number of workers, a service-time law, the dispatcher's rules.

A `System` like the engine, in computed time. `run` keeps every query; `stream` only a summary, so
that its memory does not grow with the length of the run. Knows no models and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import (
    SLA,
    Facts,
    FloatArray,
    Policy,
    Records,
    Requests,
    Schedule,
    Status,
    UserError,
    Watch,
)
from deeprecsys.metrics import Summary
from deeprecsys.service_time import ServiceTime, Tables
from deeprecsys.streaming import RunningSummary

_FINGERPRINT = 64
# A watch looks at a run in progress after these shares of its arrivals.
_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# More queries than this in the system is an overload by any measure: a stream ends there.
MOST_WAITING = 2_000_000


class Simulator:
    """`Simulator(ServiceTime.linear(1e-4, 1.5e-5), workers=40).run(schedule, policy)`.

    The same seed and schedule give the same records.
    """

    def __init__(self, service: ServiceTime, workers: int, *, seed: int = 0) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise UserError(f"workers must be a whole number of at least 1, not {workers!r}")
        self.service, self.workers, self.seed = service, workers, seed
        self._tables: dict[int, Tables] = {}

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        """Every query's record. UserError where a request would be beyond the profile."""
        machine = _Machine(self, policy, schedule)
        records, rest = machine.serve(schedule, final=True)
        assert not len(rest)
        return records if watch is None else _watched(records, watch)

    def traced_run(self, schedule: Schedule, policy: Policy) -> tuple[Records, Requests]:
        """The same records, and every request: event by event, at some 100,000 requests/s."""
        from deeprecsys.simulation.reference import replay

        machine = _Machine(self, policy, schedule)
        tables = machine.tables(self.tables(machine.largest(schedule)))
        return replay(schedule, policy, self.workers, tables, machine.rng)

    def stream(
        self, schedules: Iterable[Schedule], policy: Policy, sla: SLA | None = None
    ) -> Summary:
        """Summary of a run whose schedule comes in pieces, one after the other.

        An unstable load ends early, as overloaded, once two million queries wait.
        """
        found = RunningSummary(sla, self.workers)
        machine: _Machine | None = None
        waiting, longest = _NOTHING, 1
        for piece in schedules:
            longest = max(longest, len(piece))
            if machine is None:
                machine = _Machine(self, policy, piece)
            records, waiting = machine.serve(piece, final=False)
            found.add(records)
            if found.inside + len(waiting) > MOST_WAITING:
                break
        if machine is not None:
            rest = machine.serve(_NOTHING, final=True)[0]
            for first in range(0, len(rest), longest):
                found.add(rest[first : first + longest])
        return found.summary()

    def facts(self) -> Facts:
        machine: dict[str, Any] = {}
        if self.service.profile is not None:
            machine = dict(self.service.profile.about.get("machine", {}))
        return Facts(
            workers=self.workers,
            machine=machine,
            service_s=self.service,
            virtual=True,
            detail={
                "simulated": True,
                "service": self.service.text,
                "assumptions": self.service.assumptions(self.workers),
            },
        )

    def disturbance(self) -> float:
        return 0.0

    def generator(self, schedule: Schedule) -> np.random.Generator:
        """Of service times. The first queries pick it: the same at every rate, another for
        another seed of the workload."""
        size, arrival_s = schedule.size[:_FINGERPRINT], schedule.arrival_s[:_FINGERPRINT]
        gaps = arrival_s / arrival_s[-1] if len(size) and arrival_s[-1] > 0 else np.zeros(1)
        return np.random.default_rng([self.seed, int(size.sum()), round(gaps.sum() * 1e9)])

    def tables(self, largest: int) -> Tables:
        if largest not in self._tables:
            self._tables[largest] = self.service.tables(largest, self.workers)
        return self._tables[largest]


_NOTHING = Schedule(np.zeros(0), np.zeros(0, np.int64))


class _Machine:
    """The state that carries over from one piece of a schedule to the next."""

    def __init__(self, simulator: Simulator, policy: Policy, first: Schedule) -> None:
        if policy.offload_threshold is not None:
            raise UserError("this machine has no accelerator: leave the offload threshold out")
        self.simulator, self.policy = simulator, policy
        self.free_s = np.zeros(simulator.workers)
        self.who = np.arange(simulator.workers, dtype=np.int32)
        # The sizes pick the stream: the same at every rate, another for another seed of theirs.
        self.rng = simulator.generator(first)
        self.weather_from = self.rng.random()
        self._serve: Callable[..., tuple[Records, Schedule]] = (
            self._adaptive if policy.adaptive else self._static
        )
        # Adaptive: queries of earlier pieces that wait, and what is known of them.
        self.waiting = _NOTHING
        self.known = _columns(_NOTHING)
        self.left = 0

    def tables(self, tables: Tables) -> Tables:
        """With this run's weather, which begins anywhere in the measured one."""
        first = int(self.weather_from * len(tables.weather))
        return tables._replace(weather=np.roll(tables.weather, -first))

    def serve(self, schedule: Schedule, *, final: bool) -> tuple[Records, Schedule]:
        """Records of the queries whose requests have all begun, and those that still wait.

        Unless `final`, more queries follow, which may share a request with the last of these.
        """
        return self._serve(schedule, final)

    def largest(self, schedule: Schedule) -> int:
        """Items of the largest request."""
        if self.policy.adaptive:
            return self.policy.most_items
        return int(min(schedule.size.max(initial=1), self.policy.batch_size))

    def _static(self, schedule: Schedule, final: bool) -> tuple[Records, Schedule]:
        from deeprecsys.simulation.kernels import serve

        columns = _columns(schedule)
        tables = self.simulator.tables(self.largest(schedule))
        serve(
            schedule.arrival_s, schedule.size, self.policy.batch_size, self.free_s, self.who,
            self.tables(tables), self.rng, *columns,
        )  # fmt: skip
        return _records(schedule, *columns), _NOTHING

    def _adaptive(self, schedule: Schedule, final: bool) -> tuple[Records, Schedule]:
        from deeprecsys.simulation.kernels import serve_adaptive

        every = Schedule(
            np.concatenate([self.waiting.arrival_s, schedule.arrival_s]),
            np.concatenate([self.waiting.size, schedule.size]),
        )
        fresh = _columns(schedule)
        columns = _each(lambda i: np.concatenate([self.known[i], fresh[i]]))
        left = self.left if len(self.waiting) else int(every.size[:1].sum())
        most = self.largest(every)
        _, head, self.left = serve_adaptive(
            every.arrival_s, every.size, self.policy.batch_size, most, self.free_s, self.who,
            self.tables(self.simulator.tables(most)), self.rng, *columns, left, final,
        )  # fmt: skip
        self.waiting = Schedule(every.arrival_s[head:], every.size[head:])
        self.known = _each(lambda i: columns[i][head:])
        done = Schedule(every.arrival_s[:head], every.size[:head])
        return _records(done, *_each(lambda i: columns[i][:head])), self.waiting


Columns = tuple[FloatArray, FloatArray, NDArray[np.int32]]


def _each(make: Callable[[int], Any]) -> Columns:
    return make(0), make(1), make(2)


def _columns(schedule: Schedule) -> Columns:
    """start_s, finish_s, worker of queries that no worker has touched."""
    arrival_s = schedule.arrival_s
    return arrival_s.copy(), arrival_s.copy(), np.full(len(schedule), -1, np.int32)


def _records(
    schedule: Schedule, start_s: FloatArray, finish_s: FloatArray, worker: NDArray[np.int32]
) -> Records:
    n = len(schedule)
    return Records(
        arrival_s=schedule.arrival_s,
        start_s=start_s,
        finish_s=finish_s,
        size=schedule.size,
        device=np.zeros(n, np.int16),
        worker=worker,
        status=np.zeros(n, np.int8),
        submit_s=schedule.arrival_s,
    )


def _watched(records: Records, watch: Watch) -> Records:
    """The records as a watch lets them stand: it looks a few times, and may stop the run."""
    last_s = float(records.arrival_s[-1]) if len(records) else 0.0
    for share in _LOOKS:
        now_s = share * last_s
        so_far = _at(records, now_s, Status.PENDING)
        if len(so_far) and watch(so_far, now_s):
            return _at(records, now_s, Status.CANCELLED)
    return records


def _at(records: Records, now_s: float, unfinished: Status) -> Records:
    """What is known at a moment of those that have arrived."""
    seen = records[: int(np.searchsorted(records.arrival_s, now_s, side="right"))]
    open_ = seen.finish_s > now_s
    return Records(
        arrival_s=seen.arrival_s,
        start_s=np.where(seen.start_s > now_s, math.nan, seen.start_s),
        finish_s=np.where(open_, math.nan, seen.finish_s),
        size=seen.size,
        device=seen.device,
        worker=np.where(open_, -1, seen.worker).astype(np.int32),
        status=np.where(open_, unfinished, seen.status).astype(np.int8),
        submit_s=seen.submit_s,
    )
