"""One simulated machine: any number of workers, a service-time law, the dispatcher's rules.

A `System` like the engine, in computed time. `run` keeps every query; `stream` only a summary, so
that its memory does not grow with the length of the run. Knows no models and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis.metrics import Summary
from deeprecsys.analysis.streaming import RunningSummary
from deeprecsys.core import (
    RECORD_COLUMNS,
    SLA,
    Facts,
    FloatArray,
    IntArray,
    Policy,
    Records,
    Requests,
    Schedule,
    Status,
    UserError,
    Watch,
    replace,
)
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import ServiceTime, Tables

_FINGERPRINT = 64
# A watch looks at a run in progress after these shares of its arrivals.
_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# More queries than this in the system is an overload by any measure: a stream ends there.
MOST_WAITING = 2_000_000


class Simulator:
    """`Simulator(ServiceTime.linear(1e-4, 1.5e-5), workers=40).run(schedule, policy)`.

    The same seed and schedule give the same records.
    """

    def __init__(
        self,
        service: ServiceTime,
        workers: int,
        *,
        accelerators: Sequence[Accelerator] = (),
        seed: int = 0,
        whole: bool = False,
        most_items: int | None = None,
    ) -> None:
        """whole, most_items: of the model that is simulated (`core.Servable`)."""
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise UserError(f"workers must be a whole number of at least 1, not {workers!r}")
        self.service, self.workers, self.seed = service, workers, seed
        self.accelerators = tuple(accelerators)
        if any(one.service.law == "exponential" for one in self.accelerators):
            raise UserError("an accelerator's service time is fixed or measured, not exponential")
        self.whole, self.most_items = whole, most_items
        self._tables: dict[int, Tables] = {}

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        """Every query's record. UserError where a request would be beyond the profile."""
        policy = self._uncut(policy, schedule)
        records = _Machine(self, policy, schedule).serve(schedule, final=True)
        return records if watch is None else _watched(records, watch)

    def traced_run(self, schedule: Schedule, policy: Policy) -> tuple[Records, Requests]:
        """The same records, and every request: event by event, at some 100,000 requests/s."""
        from deeprecsys.simulation.reference import replay

        policy = self._uncut(policy, schedule)
        cores = _Cores(self, policy, schedule)
        tables = cores.tables(self.tables(cores.largest(schedule)))
        devices = _Devices(self, policy, schedule)
        n = int(devices.takes(schedule).sum())
        return replay(
            schedule, policy, len(cores.who), tables, cores.rng,
            devices.tables(schedule), devices.rng.random(n),
        )  # fmt: skip

    def stream(
        self, schedules: Iterable[Schedule], policy: Policy, sla: SLA | None = None
    ) -> Summary:
        """Summary of a run whose schedule comes in pieces, one after the other.

        An unstable load ends early, as overloaded, once two million queries wait.
        """
        found = RunningSummary(sla, self.workers)
        machine: _Machine | None = None
        longest = 1
        for piece in schedules:
            longest = max(longest, len(piece))
            if machine is None:
                machine = _Machine(self, self._uncut(policy, piece), piece)
            found.add(machine.serve(piece, final=False))
            if found.inside + machine.waiting > MOST_WAITING:
                break
        if machine is not None:
            rest = machine.serve(_NOTHING, final=True)
            for first in range(0, len(rest), longest):
                found.add(rest[first : first + longest])
        return found.summary()

    def _uncut(self, policy: Policy, schedule: Schedule) -> Policy:
        """Of a model whose queries are not cut: requests as large as the largest of them."""
        return policy.uncut(int(schedule.size.max(initial=1))) if self.whole else policy

    def facts(self) -> Facts:
        machine: dict[str, Any] = {}
        if self.service.profile is not None:
            machine = dict(self.service.profile.about.get("machine", {}))
        return Facts(
            workers=self.workers,
            machine=machine,
            service_s=self.service,
            virtual=True,
            whole=self.whole,
            most_items=self.most_items,
            accelerators=tuple(one.service for one in self.accelerators),
            detail={
                "accelerators": [one.to_dict() for one in self.accelerators],
                "simulated": True,
                "service": self.service.text,
                "assumptions": [
                    *self.service.assumptions(self.workers),
                    *(f"{one.name} is emulated: {one.text}" for one in self.accelerators),
                ],
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
    """Cores and accelerators of one run, and the queries that wait from one piece to the next.

    Which of the two a query goes to depends on its size and on what the accelerators have to do,
    so the accelerators know nothing of the cores.
    """

    def __init__(self, simulator: Simulator, policy: Policy, first: Schedule) -> None:
        if policy.offload_threshold is not None and not simulator.accelerators:
            raise UserError("this machine has no accelerator: leave the offload threshold out")
        self.cores = _Cores(simulator, policy, first)
        self.devices = _Devices(simulator, policy, first)
        # What is known already of queries that came after one which still waits.
        self.held = _records(_NOTHING, *_columns(_NOTHING))
        self.held_rows = self.core_rows = np.zeros(0, np.int64)
        self.given = 0

    @property
    def waiting(self) -> int:
        """Queries of which a part has not begun."""
        return len(self.cores.waiting) + len(self.devices.waiting)

    def serve(self, schedule: Schedule, *, final: bool) -> Records:
        """Records, in order of arrival, up to the first query that waits for what follows.

        Unless `final`, more queries follow, which may share a request with the last of these.
        """
        if not self.devices.simulator.accelerators:
            return self.cores.serve(schedule, final)
        rows = np.arange(self.given, self.given + len(schedule))
        self.given += len(schedule)
        taken = self.devices.takes(schedule)
        on_devices, device_rows, staying = self.devices.serve(
            _rows_of(schedule, taken), rows[taken], final
        )
        taken &= ~np.isin(rows, staying)
        on_cores = self.cores.serve(_rows_of(schedule, ~taken), final)
        core_rows = np.concatenate([self.core_rows, rows[~taken]])
        core_rows, self.core_rows = np.split(core_rows, [len(on_cores)])
        known = np.concatenate([self.held_rows, core_rows, device_rows])
        order = np.argsort(known)
        first_waiting = min([self.given, *self.core_rows[:1], *self.devices.rows[:1]])
        ready = int(np.searchsorted(known[order], first_waiting))
        every = _joined(self.held, on_cores, on_devices)[order]
        self.held, self.held_rows = every[ready:], known[order][ready:]
        return every[:ready]


class _Cores:
    """The workers, and the queries that wait for them."""

    def __init__(self, simulator: Simulator, policy: Policy, first: Schedule) -> None:
        self.simulator, self.policy = simulator, policy
        workers = min(simulator.workers, policy.workers or simulator.workers)
        self.free_s = np.zeros(workers)
        self.who = np.arange(workers, dtype=np.int32)
        self.rng = simulator.generator(first)
        self.weather_from = self.rng.random()
        self.serve = self._adaptive if policy.adaptive else self._static
        # Adaptive: queries of earlier pieces that wait, and what is known of them.
        self.waiting = _NOTHING
        self.known = _columns(_NOTHING)
        self.left = 0

    def tables(self, tables: Tables) -> Tables:
        """With this run's weather, which begins anywhere in the measured one."""
        first = int(self.weather_from * len(tables.weather))
        return tables._replace(weather=np.roll(tables.weather, -first))

    def largest(self, schedule: Schedule) -> int:
        """Items of the largest request."""
        if self.policy.adaptive:
            return self.policy.most_items
        return int(min(schedule.size.max(initial=1), self.policy.batch_size))

    def _static(self, schedule: Schedule, final: bool) -> Records:
        from deeprecsys.simulation.kernels import Queries, serve

        columns = _columns(schedule)
        tables = self.simulator.tables(self.largest(schedule))
        queries = Queries(schedule.arrival_s, schedule.size, *columns)
        batch_size = self.policy.batch_size
        serve(queries, batch_size, self.free_s, self.who, self.tables(tables), self.rng)
        return _records(schedule, *columns)

    def _adaptive(self, schedule: Schedule, final: bool) -> Records:
        from deeprecsys.simulation.kernels import Queries, serve_adaptive

        every = _joined_schedule(self.waiting, schedule)
        fresh = _columns(schedule)
        columns = _each(lambda i: np.concatenate([self.known[i], fresh[i]]))
        left = self.left if len(self.waiting) else int(every.size[:1].sum())
        most = self.largest(every)
        _, head, self.left = serve_adaptive(
            Queries(every.arrival_s, every.size, *columns), self.policy.batch_size, most,
            self.free_s, self.who, self.tables(self.simulator.tables(most)), self.rng, left, final,
        )  # fmt: skip
        self.waiting = Schedule(every.arrival_s[head:], every.size[head:])
        self.known = _each(lambda i: columns[i][head:])
        done = Schedule(every.arrival_s[:head], every.size[:head])
        return _records(done, *_each(lambda i: columns[i][:head]))


class _Devices:
    """The accelerators, and the queries that wait for them."""

    def __init__(self, simulator: Simulator, policy: Policy, first: Schedule) -> None:
        count = len(simulator.accelerators)
        self.simulator, self.policy = simulator, policy
        self.free_s = np.zeros(count)
        self.todo, self.executing = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.rng = simulator.generator(first).spawn(1)[0]
        self.tables_of: tuple[Tables, ...] = ()
        given = policy.offload_backlog
        self.backlog = np.iinfo(np.int64).max if given is None else given
        self.waiting = _NOTHING
        self.rows = np.zeros(0, np.int64)
        self.draw = np.zeros(0)
        self.device = np.zeros(0, np.int64)

    def takes(self, schedule: Schedule) -> NDArray[np.bool_]:
        """[n] Which queries go to an accelerator."""
        threshold = self.policy.offload_threshold
        if threshold is None or not self.simulator.accelerators:
            return np.zeros(len(schedule), bool)
        return np.asarray(schedule.size >= threshold)

    def serve(
        self, schedule: Schedule, rows: IntArray, final: bool
    ) -> tuple[Records, IntArray, IntArray]:
        """Records of the queries that have begun, their rows, and the rows that stay on the cores.

        In order of arrival.
        """
        from deeprecsys.simulation.kernels import serve_offloaded

        every = _joined_schedule(self.waiting, schedule)
        rows = np.concatenate([self.rows, rows])
        draw = np.concatenate([self.draw, self.rng.random(len(schedule))])
        device = np.concatenate([self.device, np.zeros(len(schedule), np.int64)])
        start_s, finish_s = np.full((2, len(every)), math.nan)
        serve_offloaded(
            every.arrival_s, every.size, draw, self.policy.most_items, self.free_s, self.todo,
            self.executing, self.backlog, self.tables(every), start_s, finish_s, device, final,
        )  # fmt: skip
        begun, staying = ~np.isnan(start_s), device < 0
        waits = ~begun & ~staying
        self.waiting, self.rows = _rows_of(every, waits), rows[waits]
        self.draw, self.device = draw[waits], device[waits]
        worker = np.full(int(begun.sum()), -1, np.int32)
        found = _records(_rows_of(every, begun), start_s[begun], finish_s[begun], worker)
        return replace(found, device=device[begun].astype(np.int16)), rows[begun], rows[staying]

    def tables(self, schedule: Schedule) -> tuple[Tables, ...]:
        """Of each accelerator; they grow with the largest query that was seen."""
        largest = max(self.policy.most_items, int(schedule.size.max(initial=0)))
        if not self.tables_of or largest >= self.tables_of[0].mean_s.shape[1]:
            services = (one.service for one in self.simulator.accelerators)
            self.tables_of = tuple(service.tables(largest, 1) for service in services)
        return self.tables_of


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


def _joined(*parts: Records) -> Records:
    columns = RECORD_COLUMNS
    return Records(**{c: np.concatenate([getattr(p, c) for p in parts]) for c in columns})


def _joined_schedule(one: Schedule, other: Schedule) -> Schedule:
    return Schedule(
        np.concatenate([one.arrival_s, other.arrival_s]), np.concatenate([one.size, other.size])
    )


def _rows_of(schedule: Schedule, rows: NDArray[np.bool_]) -> Schedule:
    return Schedule(schedule.arrival_s[rows], schedule.size[rows], schedule.indices)


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
