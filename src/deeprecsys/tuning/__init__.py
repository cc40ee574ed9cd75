"""Capacity search and policy searches: they are handed systems, and know none."""

from deeprecsys.tuning.capacity import COARSE, FINE, Capacity, Clock, Effort, Interrupted
from deeprecsys.tuning.find import find_capacity
from deeprecsys.tuning.searches import SEARCHES, SIMULATED
from deeprecsys.tuning.study import Comparison, Observer, Study, Trial, tune

__all__ = [
    "COARSE",
    "FINE",
    "SEARCHES",
    "SIMULATED",
    "Capacity",
    "Clock",
    "Comparison",
    "Effort",
    "Interrupted",
    "Observer",
    "Study",
    "Trial",
    "find_capacity",
    "tune",
]
