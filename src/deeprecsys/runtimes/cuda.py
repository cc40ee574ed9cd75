"""A model on an NVIDIA GPU: queries as one packed transfer each way, copy and compute overlapped.

Two requests are under way at most, each in a slot of its own: while one computes, the next is
copied. Three streams, ordered by events alone: inputs in, compute, scores out. What touches CUDA is
`CudaStreams`; the tests put one in its place that runs the same steps late and in any order that
the events allow. PyTorch's eager mode executes the model: its kernels are launched, not waited for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from deeprecsys.core import Inputs, UserError
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.runtimes import Scores
from deeprecsys.runtimes.packing import Layout, Packing

# For slots, intermediate results and the libraries' own workspace, beside the model.
HEADROOM_BYTES = 2 << 30
# Of it, for the slots; what the layers make of their inputs needs as much again, or several times.
SLOTS_BYTES = 512 << 20
_REPEATS, _WARM_REPEATS = 7, 3
_MANY = 1 << 16  # items, of which the alignment is no part worth speaking of
_TOLERANCE = 1e-4  # of scores, against the model's reference


class Event(Protocol):
    """A point in a stream's order."""

    def wait(self) -> None:
        """Blocks the calling thread until the stream has passed it."""
        ...

    def since(self, other: Event) -> float:
        """Seconds of the device's clock; both were passed."""
        ...


class Stream(Protocol):
    """Work that a device does in order, without the caller waiting for it."""

    def run(self, step: Callable[[], Any]) -> None: ...
    def record(self) -> Event: ...
    def after(self, event: Event) -> None:
        """What follows in this stream waits for it."""
        ...


class Streams(Protocol):
    """A device, as this module uses it."""

    device: torch.device

    def stream(self) -> Stream: ...
    def pinned(self, size: int) -> torch.Tensor:
        """Bytes of the host from which the device copies by itself."""
        ...

    def enter_thread(self) -> None: ...
    def settle(self) -> None:
        """Waits for everything."""
        ...


@dataclass
class Spent:
    """Totals since the device was opened; seconds of the device's clock, host_s of the host's.

    host_s is that of `begin`, beside copying into the staging memory (pack_s).
    """

    requests: int = 0
    items: int = 0
    copied_bytes: int = 0
    host_s: float = 0.0
    pack_s: float = 0.0
    copy_in_s: float = 0.0
    execute_s: float = 0.0
    copy_out_s: float = 0.0


@dataclass
class _Slot:
    """Memory of one request under way; grows, by doubling, up to what a slot may take."""

    items: int  # with bytes for as many that share nothing, or for more of those that do
    staged: torch.Tensor  # pinned bytes, in
    inputs: torch.Tensor  # the same on the device
    scores: torch.Tensor  # [items, K] on the device
    answer: torch.Tensor  # the same, pinned


@dataclass
class _Ticket:
    slot: _Slot
    outputs: list[Scores]
    events: list[Event] = field(default_factory=list)


class Cuda:
    """`Device` of one GPU. UserError where there is none, or the model does not fit it.

    most_items: of a request, by the memory of its slot; larger queries stay on the cores.
    """

    emulated = False
    depth = 2

    def __init__(
        self, model: Any, number: int = 0, largest: int = 1024, streams: Streams | None = None
    ) -> None:
        """Copies the model over, and warms up and times every size class up to `largest`.

        RuntimeError where the device's scores are not the model's.
        """
        if streams is None:
            check(number, model.memory_bytes)
            streams = CudaStreams(number)
        self.name, self.spent, self._streams = f"cuda:{number}", Spent(), streams
        self._packing, self._tasks = Packing(model.inputs, model.joined), model.tasks
        self._module = _moved(model.module, streams.device)
        self._in, self._compute, self._out = (streams.stream() for _ in range(3))
        self.most_items = self._fitting(SLOTS_BYTES // self.depth)
        largest = min(largest, self.most_items)
        size = self._packing.bytes(largest)
        self._slots = [self._slot(largest, size) for _ in range(self.depth)]
        self._begun = 0
        self.service_s = self._warm(model, largest)
        self.spent = Spent()

    @property
    def detail(self) -> dict[str, Any]:
        return {"name": self.name, "emulated": False, "service": "measured", **vars(self.spent)}

    def enter_thread(self) -> None:
        self._streams.enter_thread()

    def begin(self, pieces: Sequence[tuple[Inputs, Scores]]) -> _Ticket:
        """Packs the inputs into pinned memory and hands over copy, execution and copy back."""
        began = time.perf_counter()
        which, self._begun = self._begun % self.depth, self._begun + 1
        outputs = [scores for _, scores in pieces]
        sizes = [len(scores) for scores in outputs]
        n = sum(sizes)
        if n > self.most_items:
            raise ValueError(f"{n} items are more than {self.name} holds: {self.most_items}")
        queries = [inputs for inputs, _ in pieces]
        layout = self._packing.layout(queries, sizes)
        slot, size = self._roomy(which, n, layout.bytes), layout.bytes
        packing = time.perf_counter()
        staged = slot.staged.numpy()[:size]
        self._packing.pack(staged, queries, layout)
        packed = time.perf_counter()
        ticket = _Ticket(slot, outputs)
        mark = ticket.events.append
        mark(self._in.record())
        self._in.run(lambda: slot.inputs[:size].copy_(slot.staged[:size], non_blocking=True))
        mark(self._in.record())
        self._compute.after(ticket.events[-1])
        mark(self._compute.record())
        self._compute.run(lambda: self._execute(slot, layout))
        mark(self._compute.record())
        self._out.after(ticket.events[-1])
        mark(self._out.record())
        self._out.run(lambda: slot.answer[:n].copy_(slot.scores[:n], non_blocking=True))
        mark(self._out.record())
        spent = self.spent
        spent.requests, spent.items = spent.requests + 1, spent.items + n
        spent.copied_bytes += size
        spent.pack_s += packed - packing
        spent.host_s += time.perf_counter() - began - (packed - packing)
        return ticket

    def end(self, ticket: _Ticket) -> None:
        """Waits for the answer, and writes each query's scores."""
        in_, copied, ready, executed, out, done = ticket.events
        done.wait()
        answer, lo = ticket.slot.answer.numpy(), 0
        for scores in ticket.outputs:
            scores[:] = answer[lo : lo + len(scores)]
            lo += len(scores)
        self.spent.copy_in_s += copied.since(in_)
        self.spent.execute_s += executed.since(ready)
        self.spent.copy_out_s += done.since(out)

    def close(self) -> None:
        self._streams.settle()
        self._slots.clear()
        del self._module

    def _execute(self, slot: _Slot, layout: Layout) -> None:
        n = sum(layout.sizes)
        with torch.inference_mode():
            slot.scores[:n].copy_(self._module(self._packing.views(slot.inputs, layout)))

    def _fitting(self, size_bytes: int) -> int:
        """The most items whose inputs and scores fit so many bytes; at least one."""
        each = self._packing.bytes(_MANY) / _MANY + 4 * self._tasks
        return max(1, int(size_bytes / each))

    def _roomy(self, which: int, items: int, size: int) -> _Slot:
        """That slot; a larger one in its place, where it is too small. size: bytes."""
        slot, most = self._slots[which], self.most_items
        if items > slot.items or size > len(slot.staged):
            items = slot.items if items <= slot.items else min(max(items, 2 * slot.items), most)
            if size > len(slot.staged):
                size = min(max(size, 2 * len(slot.staged)), self._packing.bytes(most))
            slot = self._slots[which] = self._slot(items, max(size, len(slot.staged)))
        return slot

    def _slot(self, items: int, size: int) -> _Slot:
        device = self._streams.device
        answer = self._streams.pinned(4 * items * self._tasks).view(torch.float32)
        return _Slot(
            items,
            self._streams.pinned(size),
            torch.empty(size, dtype=torch.uint8, device=device),
            torch.empty((items, self._tasks), device=device),
            answer.view(items, self._tasks),
        )

    def _warm(self, model: Any, largest: int) -> ServiceTime:
        """Median seconds of a request by size class, in both slots; the scores are compared."""
        sizes = sorted({*(1 << k for k in range(largest.bit_length())), largest})
        seconds = []
        for n in sizes:
            inputs = model.example(n, np.random.default_rng(n))
            scores = np.empty((n, self._tasks), np.float32)
            taken = []
            for _ in range(_WARM_REPEATS + _REPEATS):
                began = time.perf_counter()
                self.end(self.begin([(inputs, scores)]))
                taken.append(time.perf_counter() - began)
            seconds.append(float(np.median(taken[_WARM_REPEATS:])))
            worst = float(np.abs(scores - model.reference(inputs)).max())
            if not worst <= _TOLERANCE:
                raise RuntimeError(
                    f"{self.name} computes {model.name} wrongly: its scores of {n} candidates "
                    f"are off by up to {worst:.2g}"
                )
        return ServiceTime.table(np.array(sizes), np.array(seconds))


def check(number: int, model_bytes: float) -> None:
    """UserError unless the GPU is there and has room; to be asked before anything is loaded."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        have = ", ".join(f"cuda:{k}" for k in range(count)) or "none"
        raise UserError(
            f"no GPU cuda:{number} that this PyTorch can use (here: {have}): install a CUDA build "
            "of PyTorch on a machine with one, or emulate one with --accelerator gtx-1080ti"
        )
    free, _ = torch.cuda.mem_get_info(number)
    need = model_bytes + HEADROOM_BYTES
    if need > free:
        raise UserError(
            f"the model needs {need / 1e9:.1f} GB on cuda:{number} and {free / 1e9:.1f} GB are "
            "free: choose a smaller --scale"
        )


class CudaStreams:
    """`Streams` by PyTorch. Weights stay in full fp32: TF32 would cost three digits."""

    def __init__(self, number: int) -> None:
        self.device = torch.device("cuda", number)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def stream(self) -> Stream:
        return _CudaStream(self.device)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self.device)

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)


class _CudaStream:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, step: Callable[[], Any]) -> None:
        with torch.cuda.stream(self._stream):
            step()

    def record(self) -> Event:
        # Blocking: the thread that waits sleeps, where it would spin on a core that serves queries.
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaEvent(event)

    def after(self, event: Event) -> None:
        assert isinstance(event, _CudaEvent)
        self._stream.wait_event(event.event)


@dataclass(frozen=True)
class _CudaEvent:
    event: torch.cuda.Event

    def wait(self) -> None:
        self.event.synchronize()

    def since(self, other: Event) -> float:
        assert isinstance(other, _CudaEvent)
        return float(other.event.elapsed_time(self.event)) / 1e3


def _moved(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy whose weights are on the device; the original keeps its own, and no third is made."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        moved = parameter.detach().to(device)
        memo[id(parameter)] = torch.nn.Parameter(moved, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.to(device)
    return copy.deepcopy(module, memo)
