"""Where the time of a request goes: shares of FC, embedding, attention, recurrent and the rest.

Of a user's own model there are no blocks, only operators: look-ups, attention and recurrent cells
are known by their names.

Runs the plain module under PyTorch's profiler on one thread. What happens inside a look-up, an
attention or a recurrent block belongs to that block; of what is outside, matrix products are FC
and everything else is rest, listed by name. The paper's plot counts operators alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deeprecsys.core import Answer, UserError
from deeprecsys.engine.calibrate import on_cores
from deeprecsys.engine.pool import draw

CLASSES = ("FC", "embedding", "attention", "recurrent", "rest")

# FC % and embedding % (DIEN: FC and recurrent) on a CPU at batch 64, read from the plot in the
# authors' public code.
PAPER_BATCH_SIZE = 64
PAPER_SHARES: Mapping[str, Mapping[str, float]] = {
    "dlrm-rmc1": {"FC": 0.195, "embedding": 0.784},
    "dlrm-rmc2": {"FC": 0.065, "embedding": 0.924},
    "dlrm-rmc3": {"FC": 0.943, "embedding": 0.047},
    "ncf": {"FC": 0.902, "embedding": 0.030},
    "wnd": {"FC": 0.963, "embedding": 0.017},
    "mt-wnd": {"FC": 0.953, "embedding": 0.025},
    "din": {"FC": 0.786, "embedding": 0.061},
    "dien": {"FC": 0.160, "recurrent": 0.741},
}

_BLOCKS = {
    "Lookup": "embedding",
    "SumPooled": "embedding",
    "Behaviours": "embedding",
    "ActivationUnit": "attention",
    "Extraction": "recurrent",
    "Evolution": "recurrent",
}
_BY_OPERATOR = {
    "embedding": "embedding",
    "embedding_bag": "embedding",
    "scaled_dot_product_attention": "attention",
    "_native_multi_head_attention": "attention",
    "lstm": "recurrent",
    "gru": "recurrent",
}
# Forms of users' models that run PyTorch's operators one by one.
_FORMS = ("torchscript", "exported")
_PRODUCTS = {"addmm", "mm", "matmul", "linear", "bmm", "baddbmm", "mkldnn_linear", "t", "transpose"}
_FORWARD, _SCOPE, _BETWEEN = "deeprecsys.forward", "deeprecsys.", "between operators"
# Reading back what was recorded takes longer than recording it.
_WARM, _LEAST, _MOST = 3, 5, 300


@dataclass(frozen=True, slots=True)
class Operators:
    """Of one request of `batch_size` items: seconds by class, and by name what is in the rest.

    covered: the classes' sum over the time that a clock measured around the same requests.
    """

    batch_size: int
    seconds: Mapping[str, float]
    rest: Mapping[str, float]
    covered: float

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {name: self.seconds[name] / total for name in CLASSES}

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "seconds": dict(self.seconds),
            "shares": self.shares,
            "rest": dict(self.rest),
            "covered": self.covered,
        }


def check_operators(model: Any) -> None:
    """UserError where a user's own model does not run operators that can be told apart."""
    form = getattr(model, "form", None)
    if form is not None and form.name not in _FORMS:
        raise UserError(
            f"--operators: the form {form.name} cannot tell where its time goes; leave it out "
            f"(of your own models {' and '.join(_FORMS)} can)"
        )


def measure_operators(model: Any, batch_size: int, seconds: float = 1.0) -> Operators:
    """Of 5 to 300 requests of `batch_size` items, about so long; on a thread like a worker's."""
    import torch

    def work(_: int) -> Operators:
        return _operators(model, batch_size, seconds)

    found: Operators = on_cores([None], lambda: torch.set_num_threads(1), work)[0]
    return found


def _operators(model: Any, batch_size: int, seconds: float) -> Operators:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    windows = _windows(model, batch_size)
    with torch.inference_mode(), _scopes(getattr(model, "module", None)):
        for _ in range(_WARM):
            next(windows)()
        spent, requests = 0.0, 0
        until = time.perf_counter() + seconds
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            while requests < _LEAST or (requests < _MOST and time.perf_counter() < until):
                execute = next(windows)
                began = time.perf_counter()
                with record_function(_FORWARD):
                    execute()
                spent += time.perf_counter() - began
                requests += 1
    found: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    rest: Counter[str] = Counter()
    for event in recorded.events():
        scopes = _scopes_of(event)
        if scopes is None:
            continue
        name = event.name.removeprefix("aten::")
        kind = classify(name, scopes)
        self_s = event.self_cpu_time_total * 1e-6 / requests
        found[kind] += self_s
        if kind == "rest":
            rest[_BETWEEN if name.startswith(_SCOPE) else name] += self_s
    return Operators(
        batch_size, found, dict(rest.most_common()), sum(found.values()) * requests / spent
    )


def classify(operator: str, scopes: list[str]) -> str:
    """Of an operator's name and the names of the blocks around it, innermost first."""
    for scope in scopes:
        if scope in CLASSES:
            return scope
    return "FC" if operator in _PRODUCTS else "rest"


def _windows(model: Any, batch_size: int) -> Iterator[Callable[[], Any]]:
    """Requests of different candidates, so that table rows do not come from the cache."""
    import torch

    from deeprecsys.runtimes.eager import Eager

    pool = draw(model, max(4096, 2 * batch_size), "uniform")
    if hasattr(model, "form"):
        yield from _own_windows(model, pool, batch_size)
    eager = Eager(model)
    scores = np.empty((batch_size, model.tasks), np.float32)
    lo = 0
    while True:
        inputs = pool.window(lo, batch_size)
        if model.query_inputs:
            yield partial(eager.execute, eager.prepare(inputs, scores), 0, batch_size)
        else:
            tensors = [torch.from_numpy(inputs[spec.name]) for spec in model.inputs]
            yield partial(model.module, tensors)
        lo += batch_size


def _own_windows(model: Any, pool: Any, batch_size: int) -> Iterator[Callable[[], Any]]:
    """Without end; no more items than the artifact takes at once."""
    lo, n = 0, min(batch_size, model.most_items or batch_size)
    scores = Answer(model.outputs).empty(n)
    while True:
        yield partial(model.write, pool.window(lo % pool.items, n), n, scores)
        lo += n


@contextmanager
def _scopes(module: Any) -> Iterator[None]:
    """Marks the time inside each known block in the profiler's record."""
    from torch.profiler import record_function

    handles: list[Any] = []
    open_scopes: list[Any] = []

    def enter(kind: str) -> Any:
        def hook(*_: Any) -> None:
            open_scopes.append(record_function(_SCOPE + kind))
            open_scopes[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_scopes.pop().__exit__(None, None, None)

    for block in module.modules() if module is not None else ():
        if kind := _BLOCKS.get(type(block).__name__):
            handles.append(block.register_forward_pre_hook(enter(kind)))
            handles.append(block.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scopes_of(event: Any) -> list[str] | None:
    """The blocks around a recorded event, innermost first; None outside of a request."""
    scopes: list[str] = []
    at = event
    while at is not None:
        if at.name == _FORWARD:
            return scopes
        if at.name.startswith(_SCOPE):
            scopes.append(at.name.removeprefix(_SCOPE))
        elif kind := _BY_OPERATOR.get(at.name.removeprefix("aten::")):
            scopes.append(kind)
        at = at.cpu_parent
    return None
