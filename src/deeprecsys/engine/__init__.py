"""The live engine: worker threads, open-loop driver, what a machine is and can do."""

from deeprecsys.engine.engine import Engine, Load, Ticket
from deeprecsys.engine.group import DeadlineExceeded, EngineClosed, TooLate, WorkerLost

__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineClosed",
    "Load",
    "Ticket",
    "TooLate",
    "WorkerLost",
]
