"""Shared by all tests: helpers beside this file can be imported by name.

Two markers say what a test needs. `engine`: it opens an engine, a server or a client; `make check`
leaves it out. `measures`: what it asserts was measured, so it runs alone on the machine; the rest
runs on every core.
"""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# What lands is judged by the same examples each time; `--hypothesis-profile=search` draws others.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("suite")


@pytest.fixture
def short_simulations(monkeypatch):
    """Searches on a simulated machine run no longer than on a live one: for tests that ask what a
    search does, and not how exactly."""
    monkeypatch.setattr("deeprecsys.tuning.capacity._VIRTUAL_MORE", 1)


# Seconds of what an engine or a server measures or repeats when it is opened, and what it touches.
BRIEFLY = {
    "engine.calibrate._SECONDS_A_SIZE": 0.01,
    "engine.devices.ONE_CORE_S": 0.1,
    "engine.limits._SECONDS": 0.02,
    "engine.limits._TABLE_ROWS": 40_000,
    "serving.warming._WARM_S": 0.0,
}


@pytest.fixture(autouse=True)
def brief_calibration(request, monkeypatch):
    """For tests that open an engine and ask nothing of how well it knows the machine."""
    asked = request.node.get_closest_marker
    if asked("engine") and not asked("measures"):
        for name, brief in BRIEFLY.items():
            monkeypatch.setattr(f"deeprecsys.{name}", brief)
