"""deeprecsys: the most recommendation queries per second within a tail-latency target.

The names below are loaded when first used: `import deeprecsys` needs neither torch nor plotly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeprecsys.analysis.metrics import summarize as summarize
    from deeprecsys.artifacts import open_model as open_model
    from deeprecsys.client.client import Client as Client
    from deeprecsys.core import SLA as SLA
    from deeprecsys.core import InputSpec as InputSpec
    from deeprecsys.core import Policy as Policy
    from deeprecsys.core import Records as Records
    from deeprecsys.core import Schedule as Schedule
    from deeprecsys.core import Status as Status
    from deeprecsys.core import UserError as UserError
    from deeprecsys.engine import DeadlineExceeded as DeadlineExceeded
    from deeprecsys.engine import Engine as Engine
    from deeprecsys.engine import EngineClosed as EngineClosed
    from deeprecsys.experiments.benching import bench as bench
    from deeprecsys.experiments.profiling import profile as profile
    from deeprecsys.experiments.tuning import tune as tune
    from deeprecsys.machines.service_time import Profile as Profile
    from deeprecsys.machines.service_time import ServiceTime as ServiceTime
    from deeprecsys.models import load_model as load_model
    from deeprecsys.report import write_report as write_report
    from deeprecsys.rules.dispatch import QueueFull as QueueFull
    from deeprecsys.simulation import Simulator as Simulator
    from deeprecsys.tuning import find_capacity as find_capacity
    from deeprecsys.workload import Workload as Workload

_HOMES = {
    "core": ("SLA", "InputSpec", "Policy", "Records", "Schedule", "Status", "UserError"),
    "rules.dispatch": ("QueueFull",),
    "engine": ("DeadlineExceeded", "Engine", "EngineClosed"),
    "analysis.metrics": ("summarize",),
    "artifacts": ("open_model",),
    "models": ("load_model",),
    "report": ("write_report",),
    "machines.service_time": ("Profile", "ServiceTime"),
    "experiments.benching": ("bench",),
    "experiments.profiling": ("profile",),
    "experiments.tuning": ("tune",),
    "client.client": ("Client",),
    "simulation": ("Simulator",),
    "tuning": ("find_capacity",),
    "workload": ("Workload",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'deeprecsys' has no attribute {name!r}")
    value = getattr(import_module(f"deeprecsys.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
