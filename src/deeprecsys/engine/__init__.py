"""The live engine: worker threads, open-loop driver, what a machine is and can do."""

from deeprecsys.engine.engine import Engine
from deeprecsys.engine.group import DeadlineExceeded, EngineClosed

__all__ = ["DeadlineExceeded", "Engine", "EngineClosed"]
