"""A model of nothing: one dense input, the score is its sum; fails or waits on demand."""

from __future__ import annotations

import threading

import numpy as np

from deeprecsys.core import InputSpec, OutputSpec
from deeprecsys.models.check import InputCheck


class StubModel:
    name = "stub"
    tasks = 1
    joined = ()
    seed = 0
    scale = 1.0
    inputs = (InputSpec("dense", "FP32", (4,)),)
    outputs = (OutputSpec("scores", "FP32", (1,)),)
    tables = ()
    work = target = most_items = None
    whole = False
    memory_bytes = 0

    def __init__(self):
        self.check = InputCheck(self.name, self.inputs)

    def example(self, n, rng, index_law=None):
        return {"dense": rng.standard_normal((n, 4)).astype(np.float32)}


class StubRuntime:
    """Sums rows; candidates whose first value is 666 raise; `gate` holds requests back."""

    name = "stub"

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.executed = []
        self.together = []  # items of each request that joined several queries
        self.threads = set()

    def enter_thread(self):
        self.threads.add(threading.current_thread().name)

    def prepare(self, inputs, scores):
        return inputs["dense"], scores

    def execute(self, prepared, lo, hi):
        dense, scores = prepared
        self.gate.wait(10)
        self.executed.append(hi - lo)
        if (dense[lo:hi, 0] == 666).any():
            raise ValueError("the number of the beast")
        scores[lo:hi, 0] = dense[lo:hi].sum(axis=1)

    def forget(self, prepared):
        pass

    def execute_together(self, pieces):
        self.together.append(sum(hi - lo for _, lo, hi in pieces))
        for prepared, lo, hi in pieces:
            self.execute(prepared, lo, hi)


class HeldRuntime(StubRuntime):
    """Each request waits for the event named by its first value, if there is one."""

    def __init__(self):
        super().__init__()
        self.held = {}  # by first value

    def hold(self, value):
        self.held[value] = threading.Event()
        return self.held[value]

    def execute(self, prepared, lo, hi):
        gate = self.held.get(float(prepared[0][lo, 0]))
        if gate is not None:
            gate.wait(10)
        super().execute(prepared, lo, hi)
