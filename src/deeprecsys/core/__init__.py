"""The vocabulary: plain values that every layer above passes along, and the `System` protocol.

Knows nothing of models, threads, clocks or files other than its own. Every package imports it;
it imports none of them.

Data flows one way: workload -> `Schedule` -> `System` (under a `Policy`) -> `Records` -> summary
-> capacity -> study -> report. Times are seconds as floats; sizes are counts of candidate items.
"""

from dataclasses import replace

from deeprecsys.core.columns import (
    load_columns,
    save_columns,
)
from deeprecsys.core.inputs import (
    BYTES,
    DTYPES,
    Answer,
    Bounds,
    InputSpec,
    OutputSpec,
    bounds_of,
    is_shared,
    join_inputs,
    offsets,
    repeat_inputs,
    slice_inputs,
)
from deeprecsys.core.policy import (
    EXACT,
    SLA,
    Execution,
    Policy,
)
from deeprecsys.core.records import (
    DEFAULT_INDICES,
    RECORD_COLUMNS,
    Records,
    Requests,
    Schedule,
    Status,
)
from deeprecsys.core.system import (
    Facts,
    Limits,
    Servable,
    System,
    Watch,
    Work,
)
from deeprecsys.core.values import (
    FloatArray,
    Inputs,
    IntArray,
    UserError,
    for_json,
)

__all__ = [
    "BYTES",
    "DEFAULT_INDICES",
    "DTYPES",
    "EXACT",
    "RECORD_COLUMNS",
    "SLA",
    "Answer",
    "Bounds",
    "Execution",
    "Facts",
    "FloatArray",
    "InputSpec",
    "Inputs",
    "IntArray",
    "Limits",
    "OutputSpec",
    "Policy",
    "Records",
    "Requests",
    "Schedule",
    "Servable",
    "Status",
    "System",
    "UserError",
    "Watch",
    "Work",
    "bounds_of",
    "for_json",
    "is_shared",
    "join_inputs",
    "load_columns",
    "offsets",
    "repeat_inputs",
    "replace",
    "save_columns",
    "slice_inputs",
]
