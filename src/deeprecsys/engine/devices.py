"""The accelerators of an engine, by name: emulated ones, and those that are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deeprecsys.core import Answer
from deeprecsys.engine.calibrate import Cores
from deeprecsys.engine.profiler import Grid, measure, powers_of_two
from deeprecsys.machines.accelerators import accelerator, cuda_number
from deeprecsys.machines.service_time import Profile
from deeprecsys.runtimes import Device, Runtime
from deeprecsys.runtimes.emulated import Emulated

# For the times of one core, over which speed-ups were published.
ONE_CORE_S = 4.0
_PROBED = 8  # candidates, to see whether a device is back


def open_devices(
    wanted: Sequence[str | Device], model: Any, runtime: Runtime, cores: Cores, largest: int
) -> list[Device]:
    """In their order. UserError for an unknown name, or one that cannot take the model."""
    one_core: Profile | None = None
    devices: list[Device] = []
    for text in wanted:
        if not isinstance(text, str):
            devices.append(text)
            continue
        if (number := cuda_number(text)) is not None:
            from deeprecsys.runtimes.cuda import Cuda

            devices.append(Cuda(model, number, largest))
            continue
        if one_core is None and not text.startswith("emulated:"):
            one_core = _one_core(model, runtime, cores)
        devices.append(Emulated(accelerator(text, model.name, one_core), largest))
    return devices


def probing(model: Any) -> Callable[[Device], None]:
    """Executes a small request on a device, which raises where it still cannot."""

    def probe(device: Device) -> None:
        device.enter_thread()
        inputs = model.example(_PROBED, np.random.default_rng(0))
        scores = Answer(model.outputs).empty(_PROBED)
        device.end(device.begin([(inputs, scores)]))

    return probe


def _one_core(model: Any, runtime: Runtime, cores: Cores) -> Profile:
    grid = Grid(powers_of_two(1024), [1])
    about = {"model": model.name, "workers": 1}
    return measure(Profile(about), model, runtime, cores, grid, budget_s=ONE_CORE_S)
