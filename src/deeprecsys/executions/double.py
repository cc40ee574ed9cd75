"""The same module in float64: what fp32 itself is off by.

Tables stay as they are; what is looked up of them is widened, and summed, in float64. Everything
else is copied, so it is for a few candidates, not for serving.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deeprecsys.executions import copied
from deeprecsys.models.layers import Behaviours, Lookup, SumPooled

_TABLES = (Lookup, SumPooled, Behaviours, nn.Embedding, nn.EmbeddingBag)


class Double:
    """Maps a module's inputs to its scores, float64 [N, K]."""

    def __init__(self, module: nn.Module) -> None:
        self._module = copied(module)
        for part in self._module.modules():
            if isinstance(part, _TABLES):
                continue
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is None or not tensor.is_floating_point():
                    continue
                wide = tensor.detach().double()
                is_buffer = name in part._buffers
                setattr(part, name, wide if is_buffer else nn.Parameter(wide, requires_grad=False))

    def __call__(self, *inputs: Any) -> Tensor:
        """As the module takes them: a list of tensors, or several."""
        with torch.inference_mode(), _InDouble():
            scores: Tensor = self._module(*_widened(inputs))
            return scores.double()


def _widened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_widened(one) for one in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _InDouble(TorchFunctionMode):
    """What says fp32 gives float64: look-ups, and `float()`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if func is F.embedding_bag and (kwargs or {}).get("mode") == "sum" and args[0].dim() == 2:
            return F.embedding(args[0], args[1]).double().sum(1)
        found = func(*args, **(kwargs or {}))
        return found.double() if func in (F.embedding, F.embedding_bag) else found


__all__ = ["Double"]
