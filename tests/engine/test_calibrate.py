"""What an engine measures on entering."""

import threading
import time

import numpy as np
import pytest

from deeprecsys.engine import calibrate
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine


class Disturbed(StubRuntime):
    """A millisecond a request; twenty where a neighbour came by in the first turn of its size."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.mine = sizes, threading.local()

    def execute(self, prepared, lo, hi):
        size, mine = hi - lo, self.mine.__dict__
        mine["turn"] = mine.get("turn", 0) + (size < mine.get("size", 0))
        mine["size"] = size
        time.sleep(0.02 if size in self.sizes and mine["turn"] == 0 else 0.001)


def test_a_neighbour_who_comes_by_for_a_moment_makes_no_size_look_slow():
    runtime = Disturbed({64, 128})
    seen = calibrate.profile(runtime, StubModel(), [None, None], 256)
    seconds = calibrate.service_time(seen)(np.array([32.0, 64.0, 128.0, 256.0]))
    assert seconds.max() < 0.01
