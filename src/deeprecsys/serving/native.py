"""HTTP without the GIL: what is usual is read, executed and answered by the native core.

This opens the core's door for what is served, takes over what the door does not know (any other
request, slow clients, answers that are not read: `Handed`), and keeps the books of what it
answered, ten times a second. What the door does, `http_adapter` and `dataplane` do as well, for
every form: they are the specification.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys._native import Core, Door, Executor, Service
from deeprecsys.core import InputSpec, OutputSpec
from deeprecsys.engine import EngineClosed
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.wire import unsayable_line
from deeprecsys.rules.admission import Admission
from deeprecsys.serving import files
from deeprecsys.serving.dataplane import LAST_PRIORITY, DataPlane
from deeprecsys.serving.hosted import Hosted
from deeprecsys.serving.keys import INFER, Keys
from deeprecsys.serving.models import Hosting

_COLLECT_S = 0.1
# Larger queries are rare, and take so long that what Python adds does not count.
_MOST_ITEMS, _MOST_BYTES = 4096, 8 << 20
_DATATYPES = ("FP32", "INT32", "INT64")
_TIMES = ("arrived_s", "parsed_s", "start_s", "finish_s", "answered_s", "expected_s", "left_s")
_NUMBERS = ("items", "priority", "status", "service")
ANSWERED = np.dtype([*((name, "f8") for name in _TIMES), *((name, "i8") for name in _NUMBERS)])
_REASONS = {reason.status: reason for reason in Reason}
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Handed:
    """A connection that the door hands over. read: what has come of its request; unsent: of its
    answer, with which it ends if so said."""

    read: bytes
    unsent: bytes
    ends: bool


class NativeHttp:
    """The door of one server. In the event loop's thread, but for the door's own.

    take: makes a connection of the event loop of a socket that the door hands over. failed: told
    if the door ends by a fault, for nobody answers then.
    """

    def __init__(
        self,
        plane: DataPlane,
        core: Core,
        take: Callable[[socket.socket, Handed], Any],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._plane, self._core, self._take = plane, core, take
        self._loop = asyncio.get_running_loop()
        bounds = plane.bounds
        self._door = Door(
            core,
            keys=_digests(plane.keys),
            body_bytes=min(bounds.body_bytes, _MOST_BYTES),
            waiting_bytes=bounds.waiting_bytes,
            idle_s=bounds.idle_s,
            last_file=files.limit() - 1 - files.spare(),
        )
        self._services: dict[int, Hosted] = {}
        self._numbers = count()
        self._replaced: list[tuple[Service, Hosted]] = []  # queries of which may be under way
        self._tasks = set[asyncio.Task[Any]]()
        self._failed = failed
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._collecting: asyncio.TimerHandle | None = None
        self.taking = True  # what others give back
        self._loop.add_reader(self._door.signal, self._take_strays)
        self._thread.start()
        self._collect_again()

    def add(self, hosted: Hosted, executor: Executor | None) -> None:
        """Its queries need no Python from when `route` says that it answers, where it has an
        executor."""
        if executor is None:
            return
        number = next(self._numbers)
        hosted.native = _service(self._plane, hosted, self._core, executor, number)
        self._services[number] = hosted
        self._learn(hosted, hosted.engine.learn(()))

    def renew(self, hosted: Hosted, executor: Executor | None) -> None:
        """It is served otherwise: queries that begin to come after the next `route` see that."""
        before, hosted.native = hosted.native, None
        self.add(hosted, executor)
        self._replaced = [(old, number) for old, number in self._replaced if old.uses]
        if before is not None:
            self._replaced.append((before, hosted))

    def route(self, model: Hosting) -> None:
        """Queries that begin to come from now on are answered as its traffic says."""
        traffic, path = model.traffic, f"/v2/models/{model.name}"
        usual = other = None
        if traffic is not None:
            usual = model.versions[traffic.stable].native
            if traffic.canary is not None and usual is not None:
                other = model.versions[traffic.canary].native
                usual = None if other is None else usual  # Python chooses between them
        share = traffic.share if traffic is not None else 0.0
        self._door.serve(f"{path}/infer", usual, other, share)
        for version, hosted in model.versions.items():
            self._door.serve(f"{path}/versions/{version}/infer", hosted.native)

    def withdraw(self, hosted: Hosted) -> None:
        """Nobody is sent to it by its version any more."""
        self._door.serve(f"/v2/models/{hosted.name}/versions/{hosted.version}/infer", None)

    def forget(self, hosted: Hosted) -> bool:
        """Once nothing uses it; False: something does still."""
        own = [old for old, of in self._replaced if of is hosted]
        if any(service.uses for service in (*own, hosted.native) if service is not None):
            return False
        if hosted.native is None:
            return True
        self.collect()
        self._services = {n: one for n, one in self._services.items() if one is not hosted}
        hosted.native = None
        return True

    def sample_every(self, seconds: float) -> None:
        """Keeps one query whole every so many seconds; infinity: none."""
        self._door.sample_every(seconds)

    @property
    def connections(self) -> int:
        return self._door.connections

    @property
    def handing(self) -> int:
        """Connections that are the door's, or on their way to the event loop."""
        return self.connections + len(self._tasks)

    @property
    def pending(self) -> int:
        """Queries taken and not answered."""
        return self._door.pending

    @property
    def held(self) -> int:
        """Bytes of bodies."""
        return self._door.held

    def listen(self, listener: socket.socket) -> None:
        """Beside whoever else listens at it."""
        self._door.listen(os.dup(listener.fileno()))

    def adopt(self, number: int, client: str) -> None:
        """A connection of which nothing is under way; it is given a descriptor of its own."""
        self._door.adopt(os.dup(number), client)

    def admit(self, keys: Keys) -> None:
        """These are asked for from now on."""
        self._door.admit(_digests(keys))

    def share(self, name: str, file: int, offset: int, size: int) -> None:
        """A region of shared memory; the file is given a descriptor of its own."""
        self._door.share(name, os.dup(file), offset, size)

    def unshare(self, name: str) -> None:
        self._door.unshare(name)

    def allow(self, connections: int) -> None:
        """So many may be the door's."""
        self._door.allow(connections)

    def hold(self, count: int) -> None:
        """So many bytes of bodies wait elsewhere."""
        self._door.hold(count)

    def evict(self, least_s: float = 0.0) -> bool:
        """Ends the connection that has waited longest for its next head; False: none has waited
        for so long."""
        evicted = self._door.evict(least_s)
        if evicted:
            self._plane.bounded("max-connections")
        return evicted

    def drain(self) -> None:
        """Hands its connections over as soon as they are idle, and what comes at once."""
        self.taking = False
        self._door.drain()

    def stop_listening(self) -> None:
        self._door.stop_listening()

    def close(self) -> None:
        """Once the engine is closed."""
        if self._collecting is not None:
            self._collecting.cancel()
        self._loop.remove_reader(self._door.signal)
        self._door.stop()
        self._thread.join()
        self._write_down()
        self._door.close()

    def collect(self) -> None:
        """Writes down what was answered since the last time, and tells the door what requests
        take."""
        rows = self._write_down()
        for number, hosted in list(self._services.items()):
            with suppress(EngineClosed):
                own = rows[rows["service"] == number]
                self._learn(hosted, hosted.engine.learn(_promises(own)))
        for number, *sample in self._door.take_samples():
            if (kept := self._services.get(number)) is not None:
                self._plane.recent.add_native(kept.name, *sample)  # type: ignore[arg-type]

    def _write_down(self) -> NDArray[Any]:
        rows = np.frombuffer(self._door.take_answered(), ANSWERED)
        if len(rows):
            self._plane.observed.finished_natively(rows, _REASONS)
            for number in np.unique(rows["service"]).tolist():
                if (hosted := self._services.get(number)) is not None:
                    own = rows[rows["service"] == number]
                    hosted.observed.finished_natively(own, _REASONS)
                    if (recorder := self._plane.recorder) is not None:
                        good = own[own["status"] == 200]
                        recorder.answered(hosted.name, good["arrived_s"], good["items"])
        for _, status, id, why in self._door.take_failed():
            self._plane.failed_natively(Refusal(_REASONS[status], why), id)
        return rows

    def _learn(self, hosted: Hosted, admission: Admission | None) -> None:
        if admission is not None and hosted.native is not None:
            factors = [admission.factor(priority) for priority in range(LAST_PRIORITY + 1)]
            self._door.learn(hosted.native, admission.pace, admission.workers, factors)

    def _run(self) -> None:
        try:
            self._door.run()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._failed, error)

    def _collect_again(self) -> None:
        self.collect()
        self._collecting = self._loop.call_later(_COLLECT_S, self._collect_again)

    def _take_strays(self) -> None:
        for number, read, unsent, ends in self._door.take_strays():
            taken = self._take(socket.socket(fileno=number), Handed(read, unsent, ends))
            task = self._loop.create_task(taken)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def open_natively(
    plane: DataPlane,
    take: Callable[[socket.socket, Handed], Any],
    failed: Callable[[BaseException], None],
) -> NativeHttp | None:
    """For what is served now. None: all queries need Python, or an option of the server does."""
    if plane.bounds.client_qps is not None or plane.tracing is not None:
        return None
    executors = {hosted: executor_of(hosted) for hosted in plane.hosted()}
    if not any(executors.values()):
        return None
    native = NativeHttp(plane, next(iter(executors)).engine.core, take, failed)
    for hosted, executor in executors.items():
        native.add(hosted, executor)
    for model in plane.models.values():
        native.route(model)
    return native


def executor_of(hosted: Hosted) -> Executor | None:
    """What executes its queries; None: they need Python."""
    model = hosted.engine.model
    plain = all(map(_is_plain, model.inputs)) and _is_scores(model.outputs)
    if not plain or hosted.served.log_queries:
        return None
    found = hosted.engine.native(hosted.served.policy)
    return None if found is None else found[1]


def _is_plain(spec: InputSpec) -> bool:
    ragged = spec.ragged or spec.bounds
    return spec.datatype in _DATATYPES and not ragged and not spec.low and spec.padding is None


def _is_scores(outputs: tuple[OutputSpec, ...]) -> bool:
    return len(outputs) == 1 and outputs[0].datatype == "FP32"


def _digests(keys: Keys) -> list[bytes]:
    """Those with which queries may be asked; none: without any, all may."""
    return keys.digests(INFER) or ([secrets.token_bytes(32)] if keys else [])


def _service(
    plane: DataPlane, hosted: Hosted, core: Core, executor: Executor, number: int
) -> Service:
    served, model, engine = hosted.served, hosted.engine.model, hosted.engine
    counted = next((s for s in model.inputs if s.scope == "candidate"), model.inputs[0]).name
    output = model.outputs[0]
    most = min(plane.bounds.candidates, _MOST_ITEMS)
    work_s, own_s = engine.predicted(served.policy, most)
    shape = "".join(f",{size}" for size in output.shape)
    opening = {"name": output.name, "datatype": output.datatype}
    about = {"model_name": served.name, "model_version": hosted.version}
    return Service(
        core,
        executor,
        [(s.name, s.datatype, list(s.shape), s.rows or 0, s.scope == "query", s.name == counted)
         for s in model.inputs],
        served.policy,
        number=number,
        model=engine.number,
        output=output.name,
        before=f"{_encode(about).decode()[:-1]},",
        opening=f'"outputs":[{_encode(opening).decode()[:-1]},"shape":[',
        middle=f"{shape}],",
        unsayable=_encode(unsayable_line(output.name)).decode()[1:-1],
        columns=output.columns,
        whole=model.whole,
        admit=served.admit,
        deadline_s=math.inf if served.deadline_s is None else served.deadline_s,
        work_s=work_s,
        own_s=own_s,
        factors=[1.0] * (LAST_PRIORITY + 1),
    )  # fmt: skip


def _promises(rows: NDArray[Any]) -> list[tuple[float, float, float, int]]:
    """Of the queries for which something was predicted and that were executed, or expired: what
    was, what it took, the time it had, and its priority."""
    found = rows[(rows["expected_s"] > 0) & np.isin(rows["status"], (200, 504))]
    ended_s = np.where(found["status"] == 200, found["finish_s"], found["answered_s"])
    took_s = ended_s - found["parsed_s"]
    columns = (found["expected_s"], took_s, found["left_s"], found["priority"])
    return list(zip(*(column.tolist() for column in columns), strict=True))


__all__ = ["ANSWERED", "Handed", "NativeHttp", "executor_of", "open_natively"]
