"""Workloads: when queries come, how large they are, which rows they look up.

Pure functions of a seed: no clock, no model, no system. Imports `core` and numpy only; called by
the command line, the capacity search, the model inputs and users:

    schedule = Workload(sizes="production", seed=1).schedule(rate_qps=300, duration_s=10)

The three registries map the name before the colon to a function of the text after it.
"""

from deeprecsys.workload.arrivals import ARRIVAL_LAWS, ArrivalLaw, Replay, parse_arrivals
from deeprecsys.workload.indices import INDEX_LAWS, IndexLaw, parse_indices, scatter
from deeprecsys.workload.sizes import SIZE_LAWS, SizeLaw, parse_sizes
from deeprecsys.workload.workload import Workload

__all__ = [
    "ARRIVAL_LAWS",
    "INDEX_LAWS",
    "SIZE_LAWS",
    "ArrivalLaw",
    "IndexLaw",
    "Replay",
    "SizeLaw",
    "Workload",
    "parse_arrivals",
    "parse_indices",
    "parse_sizes",
    "scatter",
]
