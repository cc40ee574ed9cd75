"""A device of nothing: it answers twice the sum, and fails or waits on demand."""

from __future__ import annotations

import threading

WAIT_S = 10


class StubDevice:
    """Answers twice the sum, so that scores say who made them; `gate` holds requests back."""

    name, emulated, depth, detail = "stub-device", False, 1, {"name": "stub-device"}
    most_items = None
    service_s = staticmethod(lambda items: 1e-6 * items)

    def __init__(self, depth=1):
        self.depth = depth
        self.gate = threading.Event()
        self.gate.set()
        self.begun, self.ended, self.closed = [], [], False
        self.fails_at = {}  # "begin" or "end": at which request

    def enter_thread(self):
        pass

    def _maybe_fail(self, where, so_far):
        if len(so_far) == self.fails_at.get(where):
            raise RuntimeError("the device fell off the bus")

    def begin(self, pieces):
        self._maybe_fail("begin", self.begun)
        self.begun.append([len(scores) for _, scores in pieces])
        return pieces

    def end(self, ticket):
        self.gate.wait(WAIT_S)
        self._maybe_fail("end", self.ended)
        for inputs, scores in ticket:
            scores[:, 0] = 2 * inputs["dense"].sum(axis=1)
        self.ended.append(len(ticket))

    def close(self):
        self.closed = True
