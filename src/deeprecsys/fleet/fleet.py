"""Many machines of several kinds behind one balancer, serving one or more models.

Machines are those of `simulator.Simulator`, and a fleet of one gives its records. `run` keeps
every query; `stream` counts, so that its memory does not grow with the traffic. Static policies
only: what becomes of a query must be known when it is handed over (`kernel.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, IntArray, Policy, Records, Schedule, Status, UserError
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import ServiceTime, Tables
from deeprecsys.simulation.simulator import Simulator

BALANCERS = (
    "random", "round-robin", "two-choices", "least-queries", "least-items", "size-aware",
)  # fmt: skip
# More open queries than this for each machine on average is an overload by any measure.
MOST_OPEN = 2_000
_TABLES = 8
_ROOM = 256  # open queries of a machine, at first
_STREAMS = 3  # generators: service times, accelerators, balancer


@dataclass(frozen=True)
class Kind:
    """`count` machines of `workers` cores each. By model: service time and policy.

    accelerators: by model, those of one machine (the same number for every model). cost and
    watts: as the user states them; nothing here reads them.
    """

    name: str
    count: int
    workers: int
    service: Mapping[str, ServiceTime]
    policy: Mapping[str, Policy]
    accelerators: Mapping[str, Sequence[Accelerator]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("count", "workers"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"kind {self.name}: {what} must be at least 1, not {value!r}")
        if not self.service:
            raise UserError(f"kind {self.name} has no profile and no law: give service times")
        if missing := sorted(set(self.service) - set(self.policy)):
            raise UserError(f"kind {self.name} has no policy for {', '.join(missing)}")
        if len({len(devices) for devices in self.accelerators.values()}) > 1:
            raise UserError(f"kind {self.name}: every model needs the same accelerators")
        for model, policy in self.policy.items():
            if policy.adaptive or policy.workers is not None:
                raise UserError(
                    f"kind {self.name}: a fleet takes static policies on all workers, not {policy}"
                )
            if policy.offload_threshold is not None and not self.accelerators.get(model):
                raise UserError(f"kind {self.name} offloads {model} but has no accelerator")

    def assumptions(self, model: str) -> list[str]:
        """What a simulation of it takes for granted, in words."""
        said = [f"{self.name}: {s}" for s in self.service[model].assumptions(self.workers)]
        devices = self.accelerators.get(model, ())
        return said + [f"{self.name}: {d.name} is emulated: {d.text}" for d in devices]


@dataclass(frozen=True)
class Event:
    """At `time_s` a machine fails ("down": its open queries are handed over again), comes back
    ("up"), or becomes so many times slower ("slow")."""

    time_s: float
    machine: int
    what: str
    factor: float = 1.0


class Fleet:
    """`Fleet([kind, kind], "two-choices").stream(pieces)`; the same seed gives the same run."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        balancer: str = "two-choices",
        *,
        events: Sequence[Event] = (),
        seed: int = 0,
    ) -> None:
        """balancer: one of `BALANCERS`; "size-aware:N" hands queries of at least N items to the
        kinds with accelerators (or, where none has one, to the last kind), the rest to the others.
        """
        if not kinds:
            raise UserError("a fleet needs at least one kind of machine")
        self.kinds, self.seed = tuple(kinds), seed
        self.models = list(dict.fromkeys(m for kind in kinds for m in kind.service))
        for kind in kinds:
            if missing := sorted(set(self.models) - set(kind.service)):
                raise UserError(f"kind {kind.name} has no profile of {', '.join(missing)}")
        self.balancer, _, large = balancer.partition(":")
        if self.balancer not in BALANCERS or (self.balancer == "size-aware") != large.isdecimal():
            known = ", ".join([*BALANCERS[:-1], "size-aware:ITEMS"])
            raise UserError(f"unknown balancer {balancer!r}; known: {known}")
        if self.balancer == "size-aware" and len(kinds) < 2:
            raise UserError("size-aware needs two kinds of machine: one for the large queries")
        self.large = int(large or 0)
        self.machines = sum(kind.count for kind in kinds)
        self.events = sorted(events, key=lambda event: event.time_s)
        _check(self.events, self.machines)

    @property
    def workers(self) -> int:
        return sum(kind.count * kind.workers for kind in self.kinds)

    def run(self, schedule: Schedule, model: IntArray | None = None) -> FleetRun:
        """Every query's record. model: [n] index into `models`; default, all the first."""
        run = _Run(self, schedule, stretches=1, duration_s=math.inf, keep=len(schedule))
        run.add(schedule, model)
        run.finish()
        kept = run.kept
        lost = np.isnan(kept.finish_s)
        records = Records(
            schedule.arrival_s, kept.start_s, kept.finish_s, schedule.size,
            kept.device.astype(np.int16), kept.worker.astype(np.int32),
            np.where(lost, Status.FAILED, Status.OK).astype(np.int8), schedule.arrival_s,
        )  # fmt: skip
        return FleetRun(records, kept.machine, int(run.counts.totals[0]))

    def stream(
        self,
        pieces: Iterable[tuple[Schedule, IntArray | None]],
        duration_s: float,
        stretches: int = 96,
    ) -> FleetDay:
        """A run of `duration_s` whose schedule comes in pieces (with each query's model), counted
        by stretches of it. An overload ends early, and says so.
        """
        run: _Run | None = None
        for schedule, model in pieces:
            if run is None:
                run = _Run(self, schedule, stretches, duration_s)
            if not run.add(schedule, model):
                break
        if run is None:
            raise UserError("no query arrives in that time: give more traffic or a longer run")
        run.finish()
        return FleetDay(self, duration_s, run.counts, run.overloaded, run.last_s)


@dataclass(frozen=True)
class FleetRun:
    """records: of a query that nobody was up for, FAILED. machine: [n]. retried: handed over
    again after a failure."""

    records: Records
    machine: NDArray[np.int32]
    retried: int


@dataclass(frozen=True)
class FleetDay:
    """What a streamed run counted, by stretch of its time.

    Latencies stand in bins of 1 %; a query that nobody was up for is in none of them.
    """

    fleet: Fleet
    duration_s: float
    counts: Any
    overloaded: bool
    last_s: float

    @property
    def queries(self) -> int:
        return int(self.counts.latency.sum())

    @property
    def retried(self) -> int:
        return int(self.counts.totals[0])

    @property
    def unserved(self) -> int:
        return int(self.counts.totals[1])

    def percentile_s(self, p: float, model: int | None = None) -> float:
        """Of the whole run, of one model or of all."""
        return _percentile(self._latency(model).sum(axis=0), p)

    def percentiles_s(self, p: float, model: int | None = None) -> list[float]:
        """[stretches]; NaN where nothing arrived."""
        return [_percentile(row, p) for row in self._latency(model)]

    def rates_qps(self) -> FloatArray:
        """[stretches] queries/s that arrived."""
        return np.asarray(self.counts.latency.sum(axis=(1, 2)) / self.counts.stretch_s)

    def busy(self) -> dict[str, FloatArray]:
        """By kind [stretches]: share of the cores' time at work."""
        return self._shares(self.counts.busy_s, lambda kind: kind.workers)

    def devices_busy(self) -> dict[str, FloatArray]:
        """The same of the kinds that have accelerators."""
        return self._shares(
            self.counts.device_busy_s,
            lambda kind: max((len(d) for d in kind.accelerators.values()), default=0),
        )

    def _shares(self, busy_s: FloatArray, of: Any) -> dict[str, FloatArray]:
        return {
            kind.name: busy_s[:, i] / (self.counts.stretch_s * kind.count * of(kind))
            for i, kind in enumerate(self.fleet.kinds)
            if of(kind)
        }

    def _latency(self, model: int | None) -> Any:
        latency = self.counts.latency
        return latency.sum(axis=1) if model is None else latency[:, model]


def _percentile(counts: IntArray, p: float) -> float:
    """The order statistic of rank ⌈p·n/100⌉, to 1 %: the middle of its bin."""
    from deeprecsys.fleet.kernel import LEAST_S, STEP

    n = int(counts.sum())
    if not n:
        return math.nan
    at = int(np.searchsorted(np.cumsum(counts), math.ceil(p * n / 100 - 1e-9)))
    return LEAST_S * math.exp((at + 0.5) * STEP)


class _Run:
    """A fleet in the middle of a run: its arrays, which grow when they must."""

    def __init__(
        self, fleet: Fleet, first: Schedule, stretches: int, duration_s: float, keep: int = 0
    ) -> None:
        from deeprecsys.fleet import kernel as kernel

        self.kernel, self.fleet = kernel, fleet
        simulator = Simulator(next(iter(fleet.kinds[0].service.values())), 1, seed=fleet.seed)
        self.rng = simulator.generator(first)
        shift = self.rng.random()
        self.device_rng, self.balancer_rng = self.rng.spawn(2)
        # Of the same kind of arrays, so that the kernel is compiled once.
        self.nothing = Schedule(first.arrival_s[:0], first.size[:0])
        self.rules = self._rules()
        self.tables, self.device_tables = self._tables(int(first.size.max(initial=1)))
        self.state = self._state(shift)
        models, kinds = len(fleet.models), len(fleet.kinds)
        self.counts = kernel.Counts(
            np.zeros((stretches, models, kernel.BINS), np.int64),
            np.zeros((stretches, models), np.int64),
            np.zeros((stretches, kinds)), np.zeros((stretches, kinds)), np.zeros(2, np.int64),
            duration_s / stretches,
        )  # fmt: skip
        self.kept = kernel.Kept(
            np.zeros(keep), np.zeros(keep), np.full(keep, -1, np.int64), np.zeros(keep, np.int64),
            np.full(keep, -1, np.int32),
        )  # fmt: skip
        events, codes = fleet.events, {"down": kernel.DOWN, "up": kernel.UP, "slow": kernel.SLOW}
        self.events = kernel.Events(
            np.array([event.time_s for event in events], np.float64),
            np.array([codes[event.what] for event in events], np.int64),
            np.array([event.machine for event in events], np.int64),
            np.array([event.factor for event in events], np.float64),
        )
        self.next_event = self.given = 0
        self.last_s = 0.0
        self.overloaded = False

    def add(self, schedule: Schedule, model: IntArray | None) -> bool:
        """Hands a piece over; False once the fleet is overloaded beyond hope."""
        largest = int(schedule.size.max(initial=0))
        if largest > self.largest:
            self.tables, self.device_tables = self._tables(largest)
        self.overloaded = not self._serve(schedule, model)
        if self.overloaded:
            return False
        self.given += len(schedule)
        self.last_s = schedule.duration_s
        return True

    def finish(self) -> None:
        """The events after the last arrival, and what is still open."""
        self._serve(self.nothing, None, final=True)

    def _serve(self, schedule: Schedule, model: IntArray | None, *, final: bool = False) -> bool:
        """False where the state is too small and may not grow."""
        chosen = np.zeros(0, np.int64) if model is None else np.asarray(model, np.int64)
        at, what = 0, self.kernel.GROW
        while what == self.kernel.GROW:
            at, self.next_event, what = self.kernel.serve_fleet(
                at, self.next_event, schedule.arrival_s, schedule.size, chosen, self.given, final,
                self.events, self.state, self.rules, self.tables, self.device_tables, self.counts,
                self.kept, self.rng, self.device_rng, self.balancer_rng,
            )  # fmt: skip
            if what == self.kernel.GROW and not self._grow():
                return False
        return True

    def _grow(self) -> bool:
        """Twice the room; False where so much waits that more room is no help."""
        if self.state.open[0] > MOST_OPEN * self.fleet.machines and not len(self.kept.finish_s):
            return False
        state = self.state
        slots = len(state.arrival_s)
        wider = {
            name: np.concatenate([getattr(state, name), np.zeros_like(getattr(state, name))], 1)
            for name in ("heap_s", "heap_slot")
        }
        ring = np.zeros((len(state.ring), 2 * state.ring.shape[1]), np.int64)
        for d in range(len(ring)):  # unrolled, so that it goes on from its head
            ring[d, : state.ring.shape[1]] = np.roll(state.ring[d], -int(state.ring_head[d]))
        state.ring_head[:] = 0
        longer = {
            name: np.concatenate([getattr(state, name), np.zeros_like(getattr(state, name))])
            for name in ("arrival_s", "handed_s", "draw", "size", "model", "row", "spare")
        }
        spares = int(state.spares[0])
        longer["spare"][spares : spares + slots] = np.arange(slots, 2 * slots)
        state.spares[0] += slots
        self.state = state._replace(**wider, **longer, ring=ring)
        return True

    def _rules(self) -> Any:
        kinds, models = self.fleet.kinds, self.fleet.models

        def column(of: Any) -> IntArray:
            return np.array([[of(kind.policy[m]) for m in models] for kind in kinds], np.int64)

        most = np.iinfo(np.int64).max
        return self.kernel.Rules(
            column(lambda p: p.batch_size),
            column(lambda p: p.offload_threshold or 0),
            column(lambda p: p.most_items),
            column(lambda p: most if p.offload_backlog is None else p.offload_backlog),
            BALANCERS.index(self.fleet.balancer),
            self.fleet.large,
        )

    def _tables(self, largest: int) -> tuple[tuple[Tables, ...], tuple[Tables, ...]]:
        """By kind and model, and by accelerator and model; of requests up to what there are."""
        self.largest = largest
        cores, devices = [], []
        for kind in self.fleet.kinds:
            for model in self.fleet.models:
                most = min(kind.policy[model].batch_size, largest)
                cores.append(kind.service[model].tables(most, kind.workers))
            for number in range(_devices(kind)):
                for model in self.fleet.models:
                    one = kind.accelerators[model][number]
                    most = max(kind.policy[model].most_items, largest)
                    devices.append(one.service.tables(most, 1))
        return _padded(cores), _padded(devices or cores[:1])

    def _state(self, shift: float) -> Any:
        fleet, machines = self.fleet, self.fleet.machines
        kind = np.repeat(np.arange(len(fleet.kinds)), [k.count for k in fleet.kinds])
        workers = np.array([k.workers for k in fleet.kinds])[kind]
        widest = int(workers.max())
        devices = np.array([_devices(k) for k in fleet.kinds])[kind]
        total = int(devices.sum())
        first_kind = np.cumsum([0, *(_devices(k) for k in fleet.kinds)])[:-1]
        device_kind = np.array(
            [first_kind[k] + i for k in kind for i in range(_devices(fleet.kinds[k]))], np.int64
        )
        # Each machine has weather of its own; the first one's is that of a machine alone.
        shifts = np.array([shift, *self.balancer_rng.random(machines - 1)])
        lengths = [len(self.tables[k * len(fleet.models)].weather) for k in range(len(fleet.kinds))]
        free_s = np.full((machines, widest), math.inf)
        who = np.tile(np.arange(widest, dtype=np.int32), (machines, 1))
        for m in range(machines):
            free_s[m, : workers[m]] = 0.0
        slots = _ROOM * machines
        group = np.zeros(machines, np.int64)
        if fleet.balancer == "size-aware":
            able = [_devices(k) > 0 for k in fleet.kinds]
            if not any(able) or all(able):
                able = [k is fleet.kinds[-1] for k in fleet.kinds]
            group = np.array(able, np.int64)[kind]
        listed = np.zeros((2, machines), np.int64)
        for g in (0, 1):
            mine = np.flatnonzero(group == g)
            listed[g, : len(mine)] = mine
        return self.kernel.State(
            kind=kind, workers=workers,
            shift=np.array([int(s * lengths[k]) for s, k in zip(shifts, kind, strict=True)]),
            slow=np.ones(machines), free_s=free_s, who=who,
            heap_s=np.zeros((machines, _ROOM)), heap_slot=np.zeros((machines, _ROOM), np.int64),
            queries=np.zeros(machines, np.int64), items=np.zeros(machines, np.int64),
            first_device=np.cumsum(devices) - devices, devices=devices, device_kind=device_kind,
            device_free_s=np.zeros(total), todo=np.zeros(total, np.int64),
            executing=np.zeros(total, np.int64), ring=np.zeros((total, _ROOM), np.int64),
            ring_head=np.zeros(total, np.int64), ring_count=np.zeros(total, np.int64),
            arrival_s=np.zeros(slots), handed_s=np.zeros(slots), draw=np.zeros(slots),
            size=np.zeros(slots, np.int64), model=np.zeros(slots, np.int64),
            row=np.zeros(slots, np.int64), spare=np.arange(slots), group=group, listed=listed,
            up=np.array([(group == g).sum() for g in (0, 1)]), turn=np.full(2, -1),
            spares=np.array([slots]), fullest=np.zeros(1, np.int64), open=np.zeros(1, np.int64),
        )  # fmt: skip


def _padded(tables: list[Tables]) -> tuple[Tables, ...]:
    """Compiled code is of so many tables: few lengths, so that it is compiled seldom."""
    missing = -len(tables) % _TABLES
    return (*tables, *tables[:1] * missing)


def _devices(kind: Kind) -> int:
    """Accelerators of one machine."""
    return max((len(devices) for devices in kind.accelerators.values()), default=0)


def _check(events: Sequence[Event], machines: int) -> None:
    """UserError for what cannot happen."""
    down: set[int] = set()
    for event in events:
        if not 0 <= event.machine < machines:
            raise UserError(f"there is no machine {event.machine}: they are 0 to {machines - 1}")
        if not (event.time_s >= 0 and math.isfinite(event.time_s)):
            raise UserError(f"an event needs a time from 0 on, not {event.time_s:g} s")
        if event.what not in ("down", "up", "slow"):
            raise UserError(f"unknown event {event.what!r}; known: down, up, slow")
        if event.what == "slow" and not (event.factor > 0 and math.isfinite(event.factor)):
            raise UserError(f"a slow machine needs a positive factor, not {event.factor:g}")
        if event.what != "slow" and (event.machine in down) == (event.what == "down"):
            raise UserError(f"machine {event.machine} is {event.what} already")
        (down.add if event.what == "down" else down.discard)(event.machine)
