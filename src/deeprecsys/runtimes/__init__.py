"""How a model is executed on a device: one small interface, one file a runtime.

A runtime knows tensors and devices, not queries, queues or time. The engine prepares each
query's inputs once, in the thread that submits, and executes slices of it from its workers;
scores are written in place. Add a runtime: one file, one line in `RUNTIMES`, one fixture line
in the conformance tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from deeprecsys._native import Executor
from deeprecsys.core import Inputs, UserError
from deeprecsys.machines.service_time import ServiceTime

Scores = NDArray[Any]  # of the type and columns that `core.Answer` says


class Runtime(Protocol):
    """Executes one model. `execute` is called from several threads at a time."""

    name: str

    def enter_thread(self) -> None:
        """Once in each worker thread, before its first request."""
        ...

    def prepare(self, inputs: Inputs, scores: Scores) -> Any:
        """Once a query, before its slices: `scores` is its `core.Answer`, to be filled."""
        ...

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        """Computes candidates lo .. hi - 1 into their rows of `scores`."""
        ...

    def execute_together(self, pieces: Sequence[tuple[Any, int, int]]) -> None:
        """Several queries' slices (prepared, lo, hi) as one request."""
        ...

    def forget(self, prepared: Any) -> None:
        """What earlier slices left for later ones of the same query: the next is like a first."""
        ...


@runtime_checkable
class Native(Protocol):
    """A runtime that needs no Python to execute queries that are windows of columns."""

    def executor(self, columns: Sequence[str], most_items: int) -> Executor | None:
        """For queries whose inputs are these, in this order, and requests of so many items at most;
        None: this one does need Python."""
        ...


class Device(Protocol):
    """An accelerator: executes whole queries of one model, several as one request.

    `begin` is called from one thread and `end` from another, both in the same order; at most
    `depth` requests are between the two. Whatever either raises means that the device is lost
    until a request of the engine's own succeeds; what was begun before that is never ended.
    """

    @property
    def name(self) -> str: ...
    @property
    def emulated(self) -> bool: ...
    @property
    def depth(self) -> int: ...
    @property
    def most_items(self) -> int | None:
        """Of a request, that its memory holds; None: any. Larger queries stay on the cores."""
        ...

    @property
    def service_s(self) -> ServiceTime:
        """Seconds of one request by its items."""
        ...

    @property
    def detail(self) -> Mapping[str, Any]:
        """What summaries say of it."""
        ...

    def enter_thread(self) -> None:
        """Once in each of the two threads."""
        ...

    def begin(self, pieces: Sequence[tuple[Inputs, Scores]]) -> Any:
        """Hands a request over; answers a ticket at once."""
        ...

    def end(self, ticket: Any) -> None:
        """Waits until the request of this ticket is done, and its scores are written."""
        ...

    def close(self) -> None:
        """Gives back what it holds; nothing is between `begin` and `end`."""
        ...


def _eager(model: Any) -> Runtime:
    from deeprecsys.runtimes.eager import Eager

    return Eager(model)


def _torchscript(model: Any) -> Runtime:
    from deeprecsys.runtimes.torchscript import TorchScript

    return TorchScript(model)


def _own(model: Any) -> Runtime:
    if getattr(model.form, "module", None) is not None:  # in TorchScript
        from deeprecsys.runtimes.own_torchscript import OwnTorchScript

        return OwnTorchScript(model)
    from deeprecsys.runtimes.own import Own

    return Own(model)


RUNTIMES: dict[str, Callable[[Any], Runtime]] = {"torchscript": _torchscript, "eager": _eager}


def runtimes_of(model: Any) -> dict[str, Callable[[Any], Runtime]]:
    """Those that can execute it, by name: a user's own model has one, that of its form."""
    form = getattr(model, "form", None)
    return RUNTIMES if form is None else {form.name: _own}


def make_runtime(name: str, model: Any) -> Runtime:
    """By name; UserError naming the known ones."""
    known = runtimes_of(model)
    if name not in known:
        raise UserError(f"unknown runtime {name!r}; known: auto, {', '.join(sorted(known))}")
    return known[name](model)
