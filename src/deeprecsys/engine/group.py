"""Everything that executes under one dispatcher: workers, accelerators, deadlines; for one model,
or for several, each with a `Part`.

Composes them and decides nothing: the rules and what is open are the `books`', the threads of the
cores are `workers`, those of accelerators `lanes`. Whatever happens to a query, exactly one place
answers its future: `answers.answer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from deeprecsys._native import Core
from deeprecsys.engine.answers import answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.lanes import HANG_S, Lanes
from deeprecsys.engine.ledger import clock
from deeprecsys.engine.part import Part
from deeprecsys.engine.reaper import Reaper
from deeprecsys.engine.topology import usable_cores
from deeprecsys.engine.workers import Workers
from deeprecsys.rules.admission import Admission
from deeprecsys.runtimes import Device, Runtime

# Threads that have nothing left to do need no longer than this to end.
_LEAVE_S = 0.3


class Group:
    """`len(cores)` worker threads, and those of each device, which are the first model's.

    settings: what was set for the whole process, restored at the end.
    """

    def __init__(
        self,
        cores: Sequence[int | None],
        max_queued_items: int | None,
        devices: Sequence[Device] = (),
        of_devices: Sequence[Admission] = (),
        probe: Callable[[Device], None] = lambda device: None,
        hang_s: float = HANG_S,
    ) -> None:
        """max_queued_items: of each model. of_devices: their admission. probe: executes a small
        request on a device. hang_s: of theirs, the least that counts as hanging."""
        most_items = [device.most_items for device in devices]
        most_waking = max(2, len(usable_cores()) // 4)
        core = Core(max_queued_items, most_items, len(cores), most_waking)
        self.books = Books(core, of_devices)
        self.settings = ExitStack()
        self._reaper = Reaper(self._due)
        self.asked: int | None = None  # workers, by the latest policy
        self.workers = Workers(self.books, cores, self._reaper.watch)
        self.lanes = Lanes(
            self.books, devices, len(cores), self.workers.wake, self._reaper.watch, probe, hang_s
        )
        self.workers.start()
        self.lanes.start()

    @property
    def parts(self) -> dict[int, Part]:
        return self.books.parts

    def join(self, runtime: Runtime, admission: Admission | None, weight: float = 1.0) -> Part:
        """One more model, with a share of the workers by its weight."""
        with self.books.lock:
            number = self.books.rules.add_model(weight) if self.parts else 0
            part = Part(self, number, runtime, admission)
            if number == 0:
                self.books.rules.weigh(0, weight)
            self.books.parts[number] = part
            if len(self.parts) > 1:
                self.use(None)
        return part

    def leave(self, part: Part, until_s: float) -> bool:
        """It has nothing open any more, and its number may be another's; False: a worker hangs in
        what is its own, which is left behind with its number."""
        if not part.wait_quiet(max(_LEAVE_S, until_s - clock())):
            return False
        with self.books.lock:
            self.books.learn_paces()
            del self.books.parts[part.number]
            self.books.rules.remove_model(part.number)
        part.left.clear()
        return True

    def watch(self, deadline_s: float) -> None:
        """A query has come: is looked after until then."""
        self.workers.watch_doubts()
        if deadline_s < math.inf:
            self._reaper.watch(deadline_s)

    def is_alive(self) -> bool:
        """Can it still answer queries?"""
        with self.books.lock:
            return not self.books.closing and self.workers.is_alive()

    def replace_hung(self, longest_s: float) -> int:
        return self.workers.replace_hung(longest_s)

    def _due(self, now: float) -> float:
        """Answers the queries whose deadline has passed, gives up devices that hang, wakes workers
        that sleep beside work; when there will be something to do again."""
        following = min(self.lanes.overdue(now), self.workers.unstick(now))
        with self.books.lock:
            expired = self.books.expire(now)
            following = min(following, self.books.rules.next_deadline_s())
        answer_expired(expired)
        return following

    def use(self, workers: int | None) -> None:
        """Only so many of the workers take requests (None: all). Under the lock."""
        self.asked = workers
        self.workers.use(workers)

    def close(self, until_s: float) -> bool:
        """Ends the threads of a group of which nothing is open; False: some hang, and were left."""
        until_s = max(until_s, clock() + _LEAVE_S)
        ended = self.lanes.end(until_s)
        ended &= self.workers.end(until_s)
        self._reaper.stop(until_s - clock())
        self.settings.close()
        return ended
