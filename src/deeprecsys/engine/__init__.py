"""The live engine: worker threads, open-loop driver, what a machine is and can do.

Its names are loaded when first used: the load client takes `process` and `driver` from this
package on machines that have no PyTorch, in processes that must start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeprecsys.engine.answers import DeadlineExceeded, EngineClosed, TooLate, WorkerLost
    from deeprecsys.engine.engine import Engine, Load, Ticket

_HOMES = {
    "answers": ("DeadlineExceeded", "EngineClosed", "TooLate", "WorkerLost"),
    "engine": ("Engine", "Load", "Ticket"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineClosed",
    "Load",
    "Ticket",
    "TooLate",
    "WorkerLost",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
