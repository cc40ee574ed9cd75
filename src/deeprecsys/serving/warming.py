"""Warming up: so that no query of a client's is the first of its kind.

A model that serves nobody yet is warmed by the workers, one that comes beside others by a thread of
its own, which takes nothing from them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from deeprecsys.core import Policy, UserError
from deeprecsys.engine import Engine
from deeprecsys.rules.dispatch import QueueFull
from deeprecsys.serving.hosted import clock

# Recorded queries, the longest it may take, and by how much less a round is no gain.
_REPLAYED, _WARM_S, _STEADY = 200, 5.0, 0.9


def warm_up(engine: Engine, policy: Policy, largest: int = 1024) -> None:
    """Queries of every size that cuts differently, and recorded ones where the model has some: so
    that none of a client's is the first. Again, until they are no longer faster than before: what a
    library compiles for a size, it compiles when it has seen it more than once."""
    model = engine.model
    if model.whole and model.most_items is not None:
        largest = min(largest, model.most_items)
    sizes = {1 << k for k in range(largest.bit_length())} | {policy.batch_size, largest}
    rng = np.random.default_rng(0)
    queries = [*(model.example(size, rng) for size in sorted(sizes) if size <= largest),
               *getattr(model, "recorded", ())[:_REPLAYED]]  # fmt: skip
    before_s, until_s = math.inf, clock() + _WARM_S
    while True:
        began_s = clock()
        for inputs in queries:
            _ask_all(engine, inputs, policy)
        took_s = clock() - began_s
        if took_s > _STEADY * before_s or clock() > until_s:
            return
        before_s = took_s


def _ask_all(engine: Engine, inputs: Any, policy: Policy) -> None:
    """The same query of every worker."""
    try:
        futures = [engine.submit(inputs, policy)]
    except UserError:  # fewer candidates than the model takes
        return
    with suppress(QueueFull):  # a bound so small that they do not wait beside each other
        futures += [engine.submit(inputs, policy) for _ in range(engine.workers - 1)]
    for future in futures:
        future.result()


__all__ = ["warm_up"]
