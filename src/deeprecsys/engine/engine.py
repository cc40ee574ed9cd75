"""The live system: a model served by this machine's cores under a policy.

`submit` answers one query; `run` plays a schedule through the same path and returns records.
Composes the parts that decide nothing themselves: `group` (workers, accelerators), `play`
(open-loop generator), `pool` (inputs), `limits` and `calibrate` (what the machine can do).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from deeprecsys._native import Core, Executor
from deeprecsys.core import (
    DEFAULT_INDICES,
    EXACT,
    Answer,
    Execution,
    Facts,
    Inputs,
    Policy,
    Records,
    Requests,
    Schedule,
    Servable,
    Status,
    UserError,
    Watch,
)
from deeprecsys.engine import calibrate, play, topology
from deeprecsys.engine.answers import EngineClosed
from deeprecsys.engine.devices import open_devices, probing
from deeprecsys.engine.group import Group
from deeprecsys.engine.lanes import HANG_S
from deeprecsys.engine.ledger import Executed, Ledger, Promise, Query, Reply, Row, clock
from deeprecsys.engine.limits import measure_limits
from deeprecsys.engine.overhead import measure_overhead
from deeprecsys.engine.part import Part
from deeprecsys.engine.pool import InputPool, Pool, draw_pool
from deeprecsys.engine.power import Meter
from deeprecsys.engine.process import Neighbours, as_worker, engine_settings
from deeprecsys.engine.profiler import Grid, busy_levels, measure, powers_of_two
from deeprecsys.machines.accelerators import Accelerator, check_names, cuda_number
from deeprecsys.machines.service_time import ABOUT_MODEL, Profile, ServiceTime
from deeprecsys.rules.admission import Admission, in_time
from deeprecsys.rules.dispatch import requests
from deeprecsys.runtimes import Device, Native, Runtime, Scores

if TYPE_CHECKING:
    from deeprecsys.simulation import Simulator

# Items that may wait: far beyond what any target lets through, far below what memory holds.
MAX_QUEUED_ITEMS = 4_000_000
PROFILE_S = 60.0
# On closing: for what was taken.
DRAIN_S = 60.0
# Of that, for the runs that say what a request costs beside its execution.
OVERHEAD_SHARE, OVERHEAD_S = 0.25, 6.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A query that an engine has taken. Times are on the clock of `time.perf_counter`."""

    query: Query
    id: int
    part: Part

    @property
    def start_s(self) -> float:
        """When its first request began; NaN if none did."""
        return self.query.ledger.start_s[0]

    @property
    def finish_s(self) -> float:
        return self.query.ledger.finish_s[0]

    @property
    def requests(self) -> Sequence[Executed]:
        """Those that were executed until now, where it is traced."""
        return tuple(self.query.ledger.trace or ())

    def cancel(self) -> None:
        """Its owner has gone: forgets what nobody has begun."""
        self.part.drop([self.id], Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """present: it takes queries. items: that wait for it, or that it executes. requests: that it
    has executed. failures: how often
    it failed or hung, or failed when it was tried again; why: the last time."""

    name: str
    present: bool
    items: int
    requests: int
    failures: int
    why: str


@dataclass(frozen=True, slots=True)
class Load:
    """executed, busy_s: requests and seconds in them, by worker; executing: how many do so now.
    alive: it can answer."""

    queued_items: int
    open_queries: int
    executed: tuple[int, ...]
    busy_s: tuple[float, ...]
    executing: int
    lost_workers: tuple[str, ...]
    alive: bool
    devices: tuple[DeviceLoad, ...] = ()

    @property
    def requests(self) -> int:
        """Executed since entering, by workers and accelerators."""
        return sum(self.executed) + sum(device.requests for device in self.devices)


def _pins(pin: bool | None) -> bool:
    return topology.own_cores() if pin is None else pin


class Engine:
    """`with Engine(model, workers=2) as engine: engine.submit(inputs).result()`.

    workers: default, the cores this process may use. runtime: a name, "auto" (the fastest of
    the known ones, measured on entering), or a `Runtime`. pin: bind each worker to a core; None:
    where the cores are this process's own (`topology.own_cores`).
    accelerators: as for `--accelerator`, or any `Device`. percentile: of the queries admitted by
    prediction (`offer`), so many and a few more shall be in time. device_hang_s: an accelerator's
    request that takes longer, and ten times as long as such requests do, has its queries given to
    the cores. workers_of: another, open engine, with which it has them in common, and a share
    of them by its weight while both have something to do.
    Entering starts the workers, sets process-wide settings, warms every request size up and
    measures the service time; leaving answers what was taken and restores the settings.
    """

    def __init__(
        self,
        model: Servable,
        workers: int | None = None,
        runtime: str | Runtime = "auto",
        *,
        max_queued_items: int | None = MAX_QUEUED_ITEMS,
        pin: bool | None = None,
        largest: int = 1024,
        accelerators: Sequence[str | Device] = (),
        percentile: float = 95.0,
        device_hang_s: float = HANG_S,
        workers_of: Engine | None = None,
        weight: float = 1.0,
    ) -> None:
        if workers_of is not None:
            workers, pin = workers_of.workers, False
            if accelerators:
                raise UserError("accelerators execute the first of several models alone")
        cores = topology.usable_cores()
        if workers is None:
            workers = len(cores)
        if not isinstance(workers, int) or workers < 1:
            raise UserError(f"workers must be a whole number of at least 1, not {workers!r}")
        self.model = model
        self._answer = Answer(model.outputs)
        self._cores: Sequence[int | None] = (
            cores[:workers] if _pins(pin) and workers <= len(cores) else [None] * workers
        )
        check_names([text for text in accelerators if isinstance(text, str)])
        self._wanted_runtime, self._wanted_devices = runtime, accelerators
        self.devices: list[Device] = []
        self._max_queued_items = max_queued_items
        self._largest, self._percentile = largest, percentile
        self._device_hang_s = device_hang_s
        self._pools: dict[str, Pool] = {}
        self._facts: Facts | None = None
        self._neighbours, self._disturbance = Neighbours(len(cores)), 0.0
        self._meter, self._joules = Meter(), dict[str, float]()
        self._workers_of, self._weight = workers_of, weight
        if workers_of is not None:
            self._cores = workers_of.cores
        self._part: Part | None = None

    def __enter__(self) -> Self:
        if self._part is not None:
            raise RuntimeError("the engine is open already")
        group = None if self._workers_of is None else self._workers_of._open_part().group
        with ExitStack() as stack:
            if group is None:
                stack.enter_context(engine_settings())
            beside = group is not None
            self.runtime, self.runtime_choice = calibrate.choose(
                self._wanted_runtime, self.model, [None] if beside else self._cores
            )
            self._seen = calibrate.profile(
                self.runtime, self.model, self._cores, self._largest, beside=beside
            )
            self._service = calibrate.service_time(self._seen)
            self.devices = open_devices(
                self._wanted_devices, self.model, self.runtime, self._cores, self._largest
            )
            numbers = {device.name: cuda_number(device.name) for device in self.devices}
            self._meter = Meter([(name, k) for name, k in numbers.items() if k is not None])
            if group is None:
                group = self._group()
                group.settings = stack.pop_all()
            admission = Admission(self.workers, self._service, self._percentile)
            self._part = group.join(self.runtime, admission, self._weight)
        return self

    def _group(self) -> Group:
        """Of workers and accelerators of its own."""
        return Group(
            self._cores,
            self._max_queued_items,
            self.devices,
            [
                Admission(1, device.service_s, self._percentile, whole=True)
                for device in self.devices
            ],
            probing(self.model),
            self._device_hang_s,
        )

    def __exit__(self, *exc: object) -> None:
        self.close(drain=exc[0] is None)

    def close(self, drain: bool = True, within_s: float = DRAIN_S) -> bool:
        """Answers what was taken, or (`drain=False`) fails it; then ends workers. Idempotent.

        What is not answered within so long fails with EngineClosed, and threads that hang in a
        model or a device are left behind: then it answers False.
        """
        part, self._part = self._part, None
        return part is None or part.close(drain, within_s)

    def weigh(self, weight: float) -> None:
        """Its share of the workers that it has in common with others."""
        self._open_part().weigh(weight)

    def aim(self, percentile: float) -> None:
        """At another one: so many of the queries admitted from now on shall be in time."""
        if (admission := self._open_part().admission) is not None:
            admission.in_time = in_time(percentile)

    def beside(self, model: Servable) -> Engine:
        """Another engine, not yet entered, on the same cores: of the same model otherwise executed.

        Only one of them should be given work at a time.
        """
        other = Engine(
            model,
            self.workers,
            self.runtime.name,
            max_queued_items=self._max_queued_items,
            largest=self._largest,
            percentile=self._percentile,
        )
        other._cores = self._cores
        return other

    @property
    def workers(self) -> int:
        return len(self._cores)

    @property
    def execution(self) -> Execution:
        """Its model's: that of every policy it takes."""
        return getattr(self.model, "execution", EXACT)

    @property
    def cores(self) -> Sequence[int | None]:
        """Which core each worker is bound to; None: to none."""
        return self._cores

    def submit(
        self, inputs: Inputs, policy: Policy | None = None, deadline_s: float | None = None
    ) -> Future[Scores]:
        """Scores float32 [N, K] of one query, as a future; inputs must stay unchanged till then.

        deadline_s: seconds from now; past it the future fails with DeadlineExceeded and what
        has not begun is dropped. Raises UserError (inputs, another execution), QueueFull,
        EngineClosed.
        """
        future = self.offer(inputs, policy, deadline_s).query.future
        assert isinstance(future, Future)
        return future

    def offer(
        self,
        inputs: Inputs,
        policy: Policy | None = None,
        deadline_s: float | None = None,
        *,
        priority: int = 0,
        client: str = "",
        admit: bool = False,
        traced: bool = False,
        done: Callable[[Scores | BaseException], None] | None = None,
    ) -> Ticket:
        """`submit`, and more of what a server asks for.

        priority: queries of a lower number go first. client: whose it is, any word: clients share
        equally, and their priorities order their own queries (see `rules.dispatch`). admit: raises
        TooLate, and takes nothing, if the deadline would most likely pass. traced: keeps its
        requests. done: called with the answer, from any thread and perhaps before this returns, in
        place of a future.
        """
        part = self._open_part()
        policy = self._own(policy or Policy(execution=self.execution))
        deadline = math.inf if deadline_s is None else clock() + deadline_s
        promise = None
        if admit:  # before anything is spent on it
            n = self._items(inputs)
            how = policy.uncut(n) if self.model.whole else policy
            promise = part.admit(n, how, deadline, priority, client)
        reply = Reply(done) if done else None
        query, id = self._submit(
            inputs, policy, deadline, Row(traced), 0, reply, priority, client, promise
        )
        return Ticket(query, id, part)

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        """Plays the schedule, open loop; see `core.System`. Times count from its beginning."""
        return self._run(schedule, policy, watch, Ledger(len(schedule)))[0]

    def traced_run(
        self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None
    ) -> tuple[Records, Requests]:
        """The same, and every request that was executed."""
        ledger = Ledger(len(schedule), traced=True)
        records, began_s = self._run(schedule, policy, watch, ledger)
        return records, ledger.requests(began_s)

    def _run(
        self, schedule: Schedule, policy: Policy, watch: Watch | None, ledger: Ledger
    ) -> tuple[Records, float]:
        """The records, and when the run began on the engine's clock."""
        part = self._open_part()
        if policy.offload_threshold is not None and not self.devices:
            raise UserError("this machine has no accelerator: leave the offload threshold out")
        policy = self._own(policy)
        pool = self._pool(schedule)
        executor = self._executor(schedule, policy, pool)

        def submit(inputs: Inputs, row: int) -> int:
            return self._submit(inputs, policy, math.inf, ledger, row)[1]

        def begins() -> None:
            self._neighbours.start()
            self._meter.start()

        def ended() -> None:
            self._disturbance = self._neighbours.share()
            self._joules = self._meter.joules()

        part.wait_quiet()
        part.use(policy.workers)
        played = play.Play(part, pool, schedule, policy, watch, ledger, begins, ended)
        try:
            if executor is None:
                rows, began_s = play.by_python(played, submit)
            else:
                rows, began_s = play.natively(played, executor, self.model.whole)
        finally:
            part.wait_quiet()
            part.use(None)
        return ledger.records(schedule, began_s, rows), began_s

    def native(self, policy: Policy) -> tuple[Core, Executor] | None:
        """What executes queries under this policy without Python, their inputs in the model's
        order, a place each; None: they need it."""
        part, policy = self._open_part(), self._own(policy)
        if policy.offload_threshold is not None or not isinstance(self.runtime, Native):
            return None
        most = policy.most_items if policy.adaptive or self.model.whole else policy.batch_size
        executor = self.runtime.executor([spec.name for spec in self.model.inputs], most)
        if executor is None:
            return None
        part.use(policy.workers)
        part.left.append(executor)  # a worker that hangs may still come back to it
        return part.books.core, executor

    @property
    def core(self) -> Core:
        """The native core that its workers live in."""
        return self._open_part().books.core

    @property
    def number(self) -> int:
        """In the rules that it obeys beside others."""
        return self._open_part().number

    def predicted(self, policy: Policy, most: int) -> tuple[list[float], list[float]]:
        """Of queries of 0 .. `most` candidates what each adds to what is ahead of others, and the
        least it takes itself, in seconds as measured beforehand; see `Admission`."""
        admission = self._open_part().admission
        if admission is None:
            return [0.0] * (most + 1), [0.0] * (most + 1)
        how = [policy.uncut(n) if self.model.whole and n else policy for n in range(most + 1)]
        return (
            [admission.work_s(n, policy) for n, policy in enumerate(how)],
            [admission.own_s(n, policy) for n, policy in enumerate(how)],
        )

    def learn(self, promises: Iterable[tuple[float, float, float, int]]) -> Admission | None:
        """What became of predictions that needed no Python: see `Admission.finished`. Answers what
        is known now; None: nothing is predicted."""
        part = self._open_part()
        return part.books.learn_natively(part, promises)

    def execute_here(self, inputs: Inputs, policy: Policy) -> tuple[Scores, float]:
        """Scores of one query, cut as the policy says, and the seconds of processor time that its
        requests took in the thread that asks, which executes them all."""
        n = self.model.check(inputs)
        scores = self._answer.empty(n)
        with as_worker():
            self.runtime.enter_thread()
            prepared = self.runtime.prepare(inputs, scores)
            began_s = time.thread_time()
            for lo, hi in requests(n, policy.uncut(n) if self.model.whole and n else policy):
                self.runtime.execute(prepared, lo, hi)
            return scores, time.thread_time() - began_s

    def forget(self) -> None:
        """Once it is closed: lets go of the model, and of all that was made of it."""
        del self.model, self.runtime
        self._pools.clear()

    def _executor(self, schedule: Schedule, policy: Policy, pool: Pool) -> Executor | None:
        """What executes the run natively; None: its queries are Python's."""
        if not isinstance(pool, InputPool) or policy.offload_threshold is not None:
            return None
        most = policy.most_items if policy.adaptive else policy.batch_size
        if self.model.whole:
            most = max(most, int(schedule.size.max(initial=1)))
        columns = [column.name for column in pool.columns]
        return self.runtime.executor(columns, most) if isinstance(self.runtime, Native) else None

    def profile(
        self,
        batch_sizes: Sequence[int] | None = None,
        *,
        budget_s: float = PROFILE_S,
        indices: str = DEFAULT_INDICES,
        before: Profile | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_visit: Callable[[Profile, Grid], None] = lambda *_: None,
    ) -> Profile:
        """Service time of requests by batch size (default: 1, 2, 4 .. 1,024) and busy workers.

        Goes on where `before` ended, which must be of this model, runtime and number of workers
        (UserError). The engine must have nothing else to do.
        """
        self._open_part().wait_quiet()
        about = {
            "model": self.model.name,
            **{name: getattr(self.model, name, None) for name in ABOUT_MODEL[1:]},
            "execution": str(self.execution),
            "runtime": self.runtime.name,
            "workers": self.workers,
        }
        if before is not None:
            before.check(**about)
        machine, versions = topology.machine(), topology.versions()
        date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        about |= {"machine": machine, "versions": versions, "date": date}
        grid = Grid(batch_sizes or powers_of_two(1024), busy_levels(self.workers))
        overhead_s = min(OVERHEAD_S, OVERHEAD_SHARE * budget_s)
        profile = measure(
            before or Profile(about),
            self.model,
            self.runtime,
            self._cores,
            grid,
            budget_s=budget_s - overhead_s,
            indices=indices,
            stop=stop,
            on_visit=lambda profile, _: on_visit(profile, grid),
        )
        if stop() or not profile.points:
            return profile
        profile = measure_overhead(
            self, profile, budget_s=overhead_s, indices=indices, execution=self.execution
        )
        on_visit(profile, grid)
        return profile

    def facts(self) -> Facts:
        """Workers, machine, measured service time and limits (measured at the first call)."""
        if self._facts is None:
            self._facts = Facts(
                workers=self.workers,
                machine=topology.machine(),
                service_s=self._service,
                limits=measure_limits(self._cores),
                work=self.model.work,
                whole=self.model.whole,
                most_items=self.model.most_items,
                detail={
                    "runtime": self.runtime.name,
                    "runtime_choice": self.runtime_choice,
                    "whole_queries": self.model.whole,
                    "most_items": self.model.most_items,
                    "pinned": self._cores[0] is not None,
                    "accelerators": [dict(device.detail) for device in self.devices],
                },
                accelerators=tuple(device.service_s for device in self.devices),
                twin=self.twin(self._seen),
            )
        return self._facts

    def twin(self, profile: Profile) -> Simulator:
        """This machine, simulated from a profile of its cores."""
        from deeprecsys.simulation import Simulator

        law = ServiceTime.from_profile(profile, extrapolate=True)
        devices = [
            Accelerator(device.name, device.service_s, "as it is here", device.emulated)
            for device in self.devices
        ]
        model = self.model
        return Simulator(
            law, self.workers, accelerators=devices, whole=model.whole, most_items=model.most_items
        )

    def disturbance(self) -> float:
        """The share of the machine's cores that other processes used during the last run."""
        return self._disturbance

    def joules(self) -> dict[str, float]:
        """Of the last run, by "cores" and accelerators' names: of those that have a meter."""
        return self._joules

    def lost(self) -> dict[str, str]:
        """Accelerators that failed since entering, and why they did last; what they had then went
        to the cores."""
        return {device.name: device.why for device in self.load().devices if device.failures}

    def load(self) -> Load:
        """What it has to do now, and what its workers did since entering."""
        part = self._open_part()
        group = part.group
        return Load(
            queued_items=part.queued_items,
            open_queries=part.open_queries,
            executed=tuple(group.workers.executed),
            busy_s=tuple(group.workers.busy_s),
            executing=group.workers.executing(),
            lost_workers=tuple(group.workers.lost),
            alive=group.is_alive(),
            devices=self._device_loads(group),
        )

    def _device_loads(self, group: Group) -> tuple[DeviceLoad, ...]:
        items, records = group.books.rules.offloaded_items, group.lanes.records
        return tuple(
            DeviceLoad(device.name, r.lost is None, n, r.requests, r.failures, r.why)
            for device, n, r in zip(self.devices, items, records, strict=True)
        )

    def replace_hung(self, longest_s: float) -> int:
        """Replaces workers that execute one request for longer; its queries fail, WorkerLost."""
        return self._open_part().group.replace_hung(longest_s)

    def requests_executed(self) -> int:
        """Requests that the workers have executed since entering."""
        return sum(self._open_part().workers.executed)

    def pool_facts(self) -> dict[str, Any]:
        """Size of the input pools drawn so far, by index law."""
        return {law: pool.facts() for law, pool in self._pools.items()}

    def _submit(
        self,
        inputs: Inputs,
        policy: Policy,
        deadline: float,
        ledger: Ledger | Row,
        row: int,
        reply: Reply | None = None,
        priority: int = 0,
        client: str = "",
        promise: Promise | None = None,
    ) -> tuple[Query, int]:
        """The one way in, for `submit` and `run` alike."""
        part = self._open_part()
        n = self.model.check(inputs)
        scores = self._answer.empty(n)
        if self.model.whole:
            policy = policy.uncut(n)
        elsewhere = part.offloads(policy, n)
        prepared = None if elsewhere else self.runtime.prepare(inputs, scores)
        query = Query(part, inputs, prepared, scores, ledger, row, reply)
        if n == 0:
            return query, part.answer_empty(query)
        query.promise = promise
        return query, part.submit(query, n, policy, deadline, priority, client)

    def _own(self, policy: Policy) -> Policy:
        """UserError for another execution than this engine's model has."""
        if self._workers_of is not None and policy.offload_threshold is not None:
            policy = replace(policy, offload_threshold=None)  # accelerators are the first one's
        if policy.execution != self.execution:
            raise UserError(
                f"this engine executes {self.execution}, the policy asks for {policy.execution}: "
                "open one with executions.executed(model, policy.execution)"
            )
        return policy

    def _items(self, inputs: Inputs) -> int:
        """How many candidates unchecked inputs seem to have."""
        for spec in self.model.inputs:
            if spec.scope == "candidate":
                column = inputs.get(spec.name)
                return len(column) if column is not None and column.ndim else 0
        return 0

    def _open_part(self) -> Part:
        if self._part is None:
            raise EngineClosed("the engine is not open: use it in a with statement")
        return self._part

    def _pool(self, schedule: Schedule) -> Pool:
        law, largest = schedule.indices, int(schedule.size.max(initial=1))
        pool = self._pools.get(law)
        if pool is None or pool.span < largest:
            cache = topology.last_level_cache_bytes()
            pool = self._pools[law] = draw_pool(self.model, law, largest, cache)
        return pool
