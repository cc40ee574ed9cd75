"""Compiles what the simulators run: once, and not in each of the processes that test them."""

import numpy as np

from deeprecsys.core import Policy, Schedule
from deeprecsys.fleet.fleet import Fleet, Kind
from deeprecsys.simulation import Simulator
from machines_drawn import DEVICES, LAWS

POLICIES = (Policy(8), Policy(8, adaptive=True))
OFFLOADING = Policy(8, offload_threshold=10)


def compile_kernels() -> None:
    load, law = Schedule(np.zeros(1), np.full(1, 20)), LAWS["linear"]
    for policy in POLICIES:
        Simulator(law, 2).run(load, policy)
    for devices in range(1, len(DEVICES) + 1):
        accelerators = list(DEVICES.values())[:devices]
        Simulator(law, 2, accelerators=accelerators).run(load, OFFLOADING)
    Fleet([Kind("a", 2, 2, {"m": law}, {"m": POLICIES[0]}, {})]).run(load)


if __name__ == "__main__":
    compile_kernels()
