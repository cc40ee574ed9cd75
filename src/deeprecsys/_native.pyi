"""The native core (src/native): what Python sees of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from deeprecsys.core import Policy

Slice = tuple[int, int, int]

class Rules:
    """As `rules.dispatch.Dispatcher`, which is its specification, but for `retire`."""

    @property
    def queued_items(self) -> int: ...
    @property
    def offloaded_items(self) -> list[int]: ...
    @property
    def has_deadlines(self) -> bool: ...
    def __len__(self) -> int: ...
    def open_queries(self) -> list[int]: ...
    def add(
        self,
        query: int,
        size: int,
        policy: Policy,
        deadline_s: float = math.inf,
        priority: int = 0,
        cost: float = 0.0,
        client: str = "",
        model: int = 0,
    ) -> int | None: ...
    def add_model(self, weight: float) -> int: ...
    def remove_model(self, model: int) -> None: ...
    def weigh(self, model: int, weight: float) -> None: ...
    def items_of(self, model: int) -> int:
        """Of it, that wait for the cores; open_of: its open queries."""
    def open_of(self, model: int) -> int: ...
    def pull(self, worker: int, now: float, idle: int = 1) -> list[Slice]: ...
    def pull_offloaded(self, accelerator: int, now: float) -> list[Slice]: ...
    def choice(self, size: int, policy: Policy) -> int | None: ...
    def ahead(
        self, priority: int = 0, client: str = "", size: int = 1, model: int = 0, cost: float = 0.0
    ) -> float: ...
    def ahead_offloaded(
        self, accelerator: int, priority: int = 0, client: str = "", size: int = 1
    ) -> float: ...
    def offloaded(self, accelerator: int) -> list[tuple[int, int]]:
        """The open queries that it has, and their sizes, as they came."""
    def retire(self, accelerator: int, costs: Sequence[float]) -> None:
        """costs: of each of `offloaded`, on the cores."""
    def restore(self, accelerator: int) -> None: ...
    def finish(self, query: int, items: int) -> bool: ...
    def drop(self, query: int) -> bool: ...
    def expire(self, now: float) -> list[int]: ...
    def next_deadline_s(self) -> float: ...

class Dispatcher:
    """credit: items that a client may be behind (`rules.line`)."""

    def __init__(
        self,
        max_queued_items: int | None = None,
        accelerators: int = 0,
        most_items: Sequence[int | None] = (),
        credit: float = 20_000,
    ) -> None: ...
    @property
    def rules(self) -> Rules: ...

class Sleepers:
    """typical_s: of requests that Python executed lately. wanted: workers that are not parked."""

    typical_s: float
    @property
    def wanted(self) -> int: ...

class Seat:
    """A worker's place. began_s: of what it executes natively; 0: nothing."""

    def __init__(self, number: int) -> None: ...
    @property
    def began_s(self) -> float: ...

class Executor:
    """What executes requests natively (src/native/engine/executor.h); of a capsule."""

    def __init__(self, capsule: Any) -> None: ...

class Pacer:
    """Lets the thread that makes it compute for a share of the time, but while it holds the GIL,
    until it is gone; that thread must end it. See src/native/engine/pacer.h."""

    def __init__(self, share: float) -> None: ...
    @property
    def paced(self) -> bool:
        """False: this system has no such timers."""

def no_op() -> Executor: ...
def fixed_time(service_s: Sequence[float]) -> Executor:
    """service_s: of a request by its items, from none on."""

def execute(
    executor: Executor,
    pool: Sequence[tuple[int, int, int, int, bool]],
    users: int,
    windows: Sequence[tuple[int, int, Any]],
    requests: Sequence[Sequence[tuple[int, int, int]]],
) -> None:
    """Requests, each of slices (window, lo, hi), as a worker would execute them.

    pool, users: as of a `Run`. windows: (offset, size, scores), with room for the scores.
    """

class Core:
    """One engine's lock, rules and workers. What is not said to take the lock is called under it:
    `with core:`.

    most_items [accelerators]. most_waking: workers that are woken at a time.
    """

    closing: bool
    flying: int
    def __init__(
        self,
        max_queued_items: int | None,
        most_items: Sequence[int | None],
        workers: int,
        most_waking: int,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def sleepers(self) -> Sleepers: ...
    @property
    def executed(self) -> list[int]:
        """Requests since the beginning, by worker; busy_s: seconds in them. They need no lock."""
    @property
    def busy_s(self) -> list[float]: ...
    def add(
        self,
        size: int,
        policy: Policy,
        deadline_s: float,
        priority: int,
        cost: float,
        client: str,
        model: int = 0,
    ) -> tuple[int, int | None]:
        """As `Rules.add`: its id, and for which accelerator."""
    def wake(self) -> int | None:
        """Which worker to `open` once the lock is released."""
    def take_watch(self) -> float:
        """When to call `unstick`, where nobody was told yet; needs no lock."""
    def open(self, worker: int) -> None:
        """Needs no lock."""
    def use(self, workers: int) -> None: ...
    def count(self, worker: int, took_s: float) -> None:
        """A request that Python executed took so long."""
    def take_paces(self) -> list[tuple[int, int, int, float]]:
        """Of the native requests since the last time, the latest: its model, the most items that
        its policy's hold, its items, and its seconds."""
    def notify_quiet(self) -> None: ...
    def drop_owned(self, status: int, model: int | None = None) -> None:
        """Fails, or cancels, the open queries that are native, of a model or of all."""
    def expire(self, now: float) -> list[int]:
        """Ends what is due; of those that are Python's, which."""
    def wait_quiet(self, timeout_s: float | None = None, model: int | None = None) -> bool:
        """Takes the lock: until no query is open and nobody executes, of a model or of any; False
        on time-out."""
    def unstick(self, now: float) -> float:
        """Takes the lock."""
    def end(self) -> None:
        """Takes the lock: workers go home once nothing waits."""
    def give_up(self, seat: Seat, began_s: float) -> bool:
        """Takes the lock: the worker that executes natively since then lost its place, and its
        queries failed; False: it has finished."""
    def serve(
        self,
        seat: Seat,
        execute: Callable[[list[Slice]], bool],
        expired: Callable[[list[int]], None],
        watch: Callable[[float], None],
    ) -> bool:
        """A worker's life; takes the lock. False: another has its place."""

class Run:
    """A schedule, played. It keeps what it is made of, and `kept`.

    pool: of each column its address, bytes of a row, period, start, and whether all share a row.
    """

    def __init__(
        self,
        core: Core,
        executor: Executor,
        pool: Sequence[tuple[int, int, int, int, bool]],
        users: int,
        columns: Mapping[str, Any],
        policy: Policy,
        whole: bool,
        traced: bool,
        model: int,
        kept: object,
    ) -> None: ...
    def play(self, began_s: float) -> None: ...
    def stop(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def handed(self) -> int:
        """Queries, so far."""
    @property
    def closed(self) -> bool:
        """The engine was, meanwhile."""
    @property
    def why(self) -> str:
        """The first request that failed, if one did."""
    def wait_over(self, timeout_s: float) -> bool:
        """Until no worker executes anything of it; False: it must outlive one that does."""
    @property
    def trace(self) -> list[tuple[int, int, int, int, float, float]]:
        """(row, lo, hi, worker, start, finish) of every request."""

class Service:
    """A version of a model, as a door serves it.

    inputs: of each its name, datatype, shape of a row, rows of its table or 0, whether all
    candidates may share a row, and whether it counts them. said: as src/native/http/door.h has it.
    """

    def __init__(
        self,
        core: Core,
        executor: Executor,
        inputs: Sequence[tuple[str, str, Sequence[int], int, bool, bool]],
        policy: Policy,
        **said: object,
    ) -> None: ...
    @property
    def uses(self) -> int:
        """By paths, connections and queries."""

class Door:
    """The way of a query over HTTP: `serving/native.py` says what for. `run` is the life of its one
    thread; the other members are for any thread."""

    def __init__(
        self,
        core: Core,
        keys: Sequence[bytes],
        body_bytes: int,
        waiting_bytes: int,
        idle_s: float,
        last_file: int,
    ) -> None: ...
    def serve(
        self, path: str, usual: Service | None, other: Service | None = None, share: float = 0.0
    ) -> None:
        """Queries that begin to come at this path from now on; usual None: they are Python's.
        other: answers a share of them, by their ids."""
    def sample_every(self, every_s: float) -> None:
        """Keeps a query whole so often; infinity: none."""
    def take_samples(self) -> list[tuple[int, float, int, bytes]]:
        """Its service's number, when it came, bytes of its JSON head, and its body."""
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def listen(self, file: int) -> None: ...
    def adopt(self, file: int, client: str) -> None: ...
    def drain(self) -> None: ...
    def stop_listening(self) -> None: ...
    def evict(self, least_s: float) -> bool: ...
    def admit(self, digests: Sequence[bytes]) -> None:
        """Which keys let queries in, by their SHA-256; none: any."""
    def share(self, name: str, file: int, offset: int, size: int) -> None:
        """Bytes of a file, which is its own then, are a region of shared memory."""
    def unshare(self, name: str) -> None: ...
    def allow(self, connections: int) -> None: ...
    def hold(self, bytes: int) -> None: ...
    def learn(
        self, service: Service, pace: float, workers: int, factors: Sequence[float]
    ) -> None: ...
    @property
    def signal(self) -> int:
        """A file that can be read when there are strays."""
    def take_strays(self) -> list[tuple[int, bytes, bytes, bool]]:
        """Connections that are Python's now: each one's descriptor, what was read of its request,
        what is unsent of its answer, and whether it ends with that."""
    def take_answered(self) -> bytes:
        """Rows of `serving.native.ANSWERED`."""
    def take_failed(self) -> list[tuple[int, int, str, str]]:
        """Of those of a status from 500 on: the service's number, it, the query's id, and why."""
    @property
    def connections(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def pending(self) -> int: ...
