"""Which workers sleep, and whom to wake: a thread that is woken for nothing costs two context
switches, one that is not woken leaves a query waiting.

Starts no threads; its owner holds a lock.
"""

from __future__ import annotations

import math
import threading

from deeprecsys.engine.topology import usable_cores

# Waking a thread costs about this much, two context switches and a wait for the GIL.
WAKE_S = 30e-6
# Where requests are as short as that, those who are awake look again long before this is over.
STALL_S = 4e-3


class Sleepers:
    """gates [workers]: each idle worker sleeps on a lock of its own, so that waking one is one
    release (a condition variable costs several microseconds more).

    wanted: workers from this number on are parked, for the policy has no use for them. typical_s:
    how long requests took lately. looked_s: when a worker last looked for something to do.
    """

    def __init__(self, workers: int) -> None:
        self.gates = [threading.Lock() for _ in range(workers)]
        for gate in self.gates:
            gate.acquire()
        self.idle: list[int] = []
        self.parked: list[int] = []
        self.wanted = workers
        # Workers woken that have not pulled yet. Each that pulls wakes the next while items wait,
        # so a few at a time suffice, and short requests do not wake workers that find nothing.
        self.waking = 0
        self._most_waking = max(2, len(usable_cores()) // 4)
        # Workers that found nothing and look once more before they sleep: they will take what
        # comes next without being woken, which costs two context switches.
        self.hot = 0
        self.typical_s = math.inf
        self.looked_s = -math.inf

    @property
    def free(self) -> int:
        """Workers that could take a request, beside the one that asks."""
        return len(self.idle) + self.hot + self.waking

    @property
    def everybody(self) -> bool:
        return len(self.idle) + len(self.parked) == len(self.gates)

    def lie_down(self, worker: int) -> None:
        (self.idle if worker < self.wanted else self.parked).append(worker)

    def wake(self, stuck: bool = False) -> threading.Lock | None:
        """Items wait: which gate to open once the lock is released.

        Nobody's while a worker is about to look again; nor, where requests are shorter than
        waking someone takes, while anybody is awake at all: unless it turns out that they are
        `stuck` in long ones.
        """
        awake = self.wanted - len(self.idle)
        brief = awake > 0 and self.typical_s < WAKE_S and not stuck
        if not self.idle or brief or self.hot or self.waking >= self._most_waking:
            return None
        self.waking += 1
        return self.gates[self.idle.pop()]

    def use(self, workers: int | None) -> None:
        """Only so many of the workers take requests from now on (None: all)."""
        self.wanted = min(workers or len(self.gates), len(self.gates))
        sleeping = [*self.parked, *self.idle]
        self.idle = [worker for worker in sleeping if worker < self.wanted]
        self.parked = [worker for worker in sleeping if worker >= self.wanted]

    def everybody_up(self) -> list[threading.Lock]:
        """The gates of all that sleep, to go home."""
        sleeping = [*self.idle, *self.parked]
        self.idle, self.parked = [], []
        return [self.gates[worker] for worker in sleeping]
