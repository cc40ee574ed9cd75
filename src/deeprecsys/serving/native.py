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
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys._native import Core, Door, Executor
from deeprecsys.core import InputSpec, OutputSpec
from deeprecsys.engine import Engine, EngineClosed
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.wire import unsayable_line
from deeprecsys.rules.admission import Admission
from deeprecsys.serving import files
from deeprecsys.serving.dataplane import LAST_PRIORITY, VERSION, DataPlane
from deeprecsys.serving.keys import INFER, Keys

_COLLECT_S = 0.1
# Larger queries are rare, and take so long that what Python adds does not count.
_MOST_ITEMS, _MOST_BYTES = 4096, 8 << 20
_DATATYPES = ("FP32", "INT32", "INT64")
_TIMES = ("arrived_s", "parsed_s", "start_s", "finish_s", "answered_s", "expected_s", "left_s")
ANSWERED = np.dtype([*((name, "f8") for name in _TIMES),
                     *((name, "i8") for name in ("items", "priority", "status"))])  # fmt: skip
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
        engine: Engine,
        core: Core,
        executor: Executor,
        take: Callable[[socket.socket, Handed], Any],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._plane, self._engine, self._take = plane, engine, take
        self._loop = asyncio.get_running_loop()
        self._door = _door(plane, engine, core, executor)
        self._tasks = set[asyncio.Task[Any]]()
        self._failed = failed
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._collecting: asyncio.TimerHandle | None = None
        self.taking = True  # what others give back
        self.collect()
        self._loop.add_reader(self._door.signal, self._take_strays)
        self._thread.start()
        self._collect_again()

    @property
    def connections(self) -> int:
        return self._door.connections

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
        with suppress(EngineClosed):
            self._learn(self._engine.learn(_promises(rows)))

    def _write_down(self) -> NDArray[Any]:
        rows = np.frombuffer(self._door.take_answered(), ANSWERED)
        if len(rows):
            self._plane.observed.finished_natively(rows, _REASONS)
        for status, id, why in self._door.take_failed():
            self._plane.failed_natively(Refusal(_REASONS[status], why), id)
        return rows

    def _learn(self, admission: Admission | None) -> None:
        if admission is not None:
            factors = [admission.factor(priority) for priority in range(LAST_PRIORITY + 1)]
            self._door.learn(admission.pace, admission.workers, factors)

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
    """None: its queries need Python, or an option of the server does."""
    engine, served = plane.serving(), plane.served
    if served.log_queries or plane.bounds.client_qps is not None:
        return None
    model = engine.model
    if not all(map(_is_plain, model.inputs)) or not _is_scores(model.outputs):
        return None
    found = engine.native(served.policy)
    return NativeHttp(plane, engine, *found, take, failed) if found else None


def _is_plain(spec: InputSpec) -> bool:
    ragged = spec.ragged or spec.bounds
    return spec.datatype in _DATATYPES and not ragged and not spec.low and spec.padding is None


def _is_scores(outputs: tuple[OutputSpec, ...]) -> bool:
    return len(outputs) == 1 and outputs[0].datatype == "FP32"


def _digests(keys: Keys) -> list[bytes]:
    """Those with which queries may be asked; none: without any, all may."""
    return keys.digests(INFER) or ([secrets.token_bytes(32)] if keys else [])


def _door(plane: DataPlane, engine: Engine, core: Core, executor: Executor) -> Door:
    served, bounds, model = plane.served, plane.bounds, engine.model
    counted = next((s for s in model.inputs if s.scope == "candidate"), model.inputs[0]).name
    output = model.outputs[0]
    most = min(bounds.candidates, _MOST_ITEMS)
    work_s, own_s = engine.predicted(served.policy, most)
    shape = "".join(f",{size}" for size in output.shape)
    opening = {"name": output.name, "datatype": output.datatype}
    return Door(
        core,
        executor,
        [(s.name, s.datatype, list(s.shape), s.rows or 0, s.scope == "query", s.name == counted)
         for s in model.inputs],
        served.policy,
        paths=[plane.infer_path, plane.infer_path.replace("/infer", f"/versions/{VERSION}/infer")],
        keys=_digests(plane.keys),
        output=output.name,
        before=f'{{"model_name":{_encode(served.name).decode()},"model_version":"{VERSION}",',
        opening=f'"outputs":[{_encode(opening).decode()[:-1]},"shape":[',
        middle=f"{shape}],",
        unsayable=_encode(unsayable_line(output.name)).decode()[1:-1],
        columns=output.columns,
        whole=model.whole,
        admit=served.admit,
        deadline_s=math.inf if served.deadline_s is None else served.deadline_s,
        work_s=work_s,
        own_s=own_s,
        body_bytes=min(bounds.body_bytes, _MOST_BYTES),
        waiting_bytes=bounds.waiting_bytes,
        idle_s=bounds.idle_s,
        last_file=files.limit() - 1 - files.spare(),
    )  # fmt: skip


def _promises(rows: NDArray[Any]) -> list[tuple[float, float, float, int]]:
    """Of the queries for which something was predicted and that were executed, or expired: what
    was, what it took, the time it had, and its priority."""
    found = rows[(rows["expected_s"] > 0) & np.isin(rows["status"], (200, 504))]
    ended_s = np.where(found["status"] == 200, found["finish_s"], found["answered_s"])
    took_s = ended_s - found["parsed_s"]
    columns = (found["expected_s"], took_s, found["left_s"], found["priority"])
    return list(zip(*(column.tolist() for column in columns), strict=True))


__all__ = ["ANSWERED", "Handed", "NativeHttp", "open_natively"]
