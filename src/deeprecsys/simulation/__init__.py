"""Simulated machines: a `System` of any number of workers, in time that is computed.

`rules.dispatch.Dispatcher` is the specification; `kernels.py` is the same rules compiled, and a
property test holds them to each other query by query.
"""

from deeprecsys.simulation.simulator import Simulator

__all__ = ["Simulator"]
