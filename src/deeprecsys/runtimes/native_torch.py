"""The native core's executor of TorchScript, where the extension that links libtorch was built."""

from __future__ import annotations

from typing import Any

from deeprecsys._native import Executor
from deeprecsys.core import UserError

DATATYPES = ("FP32", "INT32", "INT64")  # that it takes


def native_executor(*of: Any) -> Executor | None:
    """As `_native_torch.executor`; None: it is not there."""
    try:
        from deeprecsys import _native_torch
    except ModuleNotFoundError:
        return None
    except ImportError as error:  # of another libtorch
        raise UserError(
            f"TorchScript's extension does not load: {error}; build it again: make setup"
        ) from error
    return Executor(_native_torch.executor(*of))


__all__ = ["DATATYPES", "native_executor"]
