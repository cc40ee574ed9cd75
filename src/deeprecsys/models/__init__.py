"""The eight published models: what they are made of, and how to load one.

Knows nothing of queries, threads that serve, or clocks. Importing this package does not import
torch: the specifications are plain data; torch comes with the first `load_model`. The runtimes,
the workload generator and the command line call it.
"""

from deeprecsys.models.model import Model, load_model
from deeprecsys.models.spec import Feature, ModelSpec, Table
from deeprecsys.models.zoo import NAMES, SPECS, VARIANTS, get_spec

__all__ = [
    "NAMES",
    "SPECS",
    "VARIANTS",
    "Feature",
    "Model",
    "ModelSpec",
    "Table",
    "get_spec",
    "load_model",
]
