"""What takes the place of perceptrons and other matrix products: packed, bf16 or int8.

A *chain* is a linear layer, or a `Sequential` of linear layers and activations. It is computed in
one type from end to end: casts are at its borders only. Packed layers are oneDNN's operator, with
the weights reordered once and a ReLU in the same pass; int8 layers are fbgemm's. Both are called
through PyTorch's own operators, which traces keep.

int8: a scale for each row of weights; activations of 7 bits (on processors without VNNI, sums of
two products of 8 bits do not fit the 16 that hold them) with the range that examples showed, so
that a candidate's score does not depend on its neighbours.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from deeprecsys.core import Execution, UserError
from deeprecsys.executions import LAYERS
from deeprecsys.models.dien import Evolution, Extraction
from deeprecsys.models.din import ActivationUnit
from deeprecsys.models.layers import Towers

_ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Identity)
# Blocks with products of their own, which follow the type of their weights.
_BLOCKS = (Towers, ActivationUnit, Extraction, Evolution)
_STEPS = 127  # of an activation in int8
# Layers of fewer weights stay fp32 beside int8 ones: they cost nothing, and the last decides.
_FEW = 4096
Range = tuple[float, float]
_ABLE = 64  # a layer so wide is not left as it is


def is_chain(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.Sequential):
        return False
    kinds = [isinstance(child, nn.Linear) for child in module]
    return any(kinds) and all(
        linear or isinstance(child, _ACTIVATIONS)
        for linear, child in zip(kinds, module, strict=True)
    )


def has_products(module: nn.Module) -> bool:
    return isinstance(module, _BLOCKS)


def rewrite(
    module: nn.Module,
    execution: Execution,
    parts: Sequence[tuple[str, nn.Module]],
    run: Callable[[nn.Module], Any],
) -> None:
    """Replaces `parts`, in place, but for those that are kept.

    run: executes a module like it over examples. UserError where this processor cannot.
    """
    chosen = [(name, part) for name, part in parts if name not in execution.kept]
    chains = [(name, part) for name, part in chosen if is_chain(part)]
    ranges: dict[nn.Module, Range] = {}
    if execution.layers == "int8":
        ranges = _ranges(module, [part for _, part in chains], run)
    try:
        for name, part in chains:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, _chain(part, execution, ranges))
        if execution.layers == "bf16":
            for _, part in chosen:
                if has_products(part):
                    _cast(part)
    except RuntimeError as error:
        raise UserError(
            f"this machine cannot execute {execution}: {str(error).splitlines()[0]}; "
            f"it can {', '.join(str(each) for each in LAYERS if _can(each))}"
        ) from error


def _can(execution: Execution) -> bool:
    """Whether this machine has such products: by making one."""
    try:
        _chain(nn.Linear(_ABLE, _ABLE), execution, {})(torch.zeros(1, _ABLE))
    except RuntimeError:
        return False
    return True


def _chain(part: nn.Module, execution: Execution, ranges: dict[nn.Module, Range]) -> nn.Module:
    layers = [part] if isinstance(part, nn.Linear) else list(part.children())
    made: list[nn.Module] = []
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        relu = isinstance(after, nn.ReLU)
        if not isinstance(layer, nn.Linear):
            if not (isinstance(layer, nn.ReLU) and made and getattr(made[-1], "relu", False)):
                made.append(_in_type(layer, execution))
        elif execution.layers == "int8" and layer.weight.numel() < _FEW:
            made.append(layer)
        elif execution.layers == "int8":
            made.append(Int8(layer, relu, ranges.get(layer, (0.0, 0.0))))
        elif execution.packed:
            made.append(Packed(_in_type(layer, execution), relu))
        else:
            made.append(_in_type(layer, execution))
    chain = nn.Sequential(*made)
    return InBF16(chain) if execution.layers == "bf16" else chain


def _in_type(layer: nn.Module, execution: Execution) -> nn.Module:
    if execution.layers != "bf16":
        return layer
    return copy.deepcopy(layer).to(torch.bfloat16)


def _cast(block: nn.Module) -> None:
    """The block's own weights; its chains have been replaced already."""
    for name, tensor in block.named_parameters(recurse=False):
        setattr(block, name, nn.Parameter(tensor.to(torch.bfloat16), requires_grad=False))
    for name, buffer in block.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(block, name, buffer.to(torch.bfloat16))
    for name, child in block.named_children():
        if isinstance(child, nn.ParameterList):
            cast = [nn.Parameter(p.to(torch.bfloat16), requires_grad=False) for p in child]
            setattr(block, name, nn.ParameterList(cast))


class InBF16(nn.Module):
    """fp32 in and out, bf16 between."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x.to(torch.bfloat16)).float()  # type: ignore[no-any-return]


class Packed(nn.Module):
    """A linear layer, and the ReLU after it, by oneDNN: [N, in] -> [N, out], in the type of the
    layer. RuntimeError where the processor has no such product."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, relu: bool) -> None:
        super().__init__()
        assert isinstance(layer, nn.Linear)
        self.relu = relu
        self._product = _packed_product("relu" if relu else "none")
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        self.register_buffer("weight", packed)
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x, self.weight, self.bias)  # type: ignore[no-any-return]


@cache
def _packed_product(after: str) -> Any:
    """The operator as a function: a trace cannot take its empty list of scalars."""
    graph = torch._C.parse_ir(
        f"""graph(%x : Tensor, %weight : Tensor, %bias : Tensor):
  %after : str = prim::Constant[value="{after}"]()
  %how : str = prim::Constant[value=""]()
  %none : Scalar?[] = prim::ListConstruct()
  %y : Tensor = mkldnn::_linear_pointwise(%x, %weight, %bias, %after, %none, %how)
  return (%y)"""
    )
    return torch._C._create_function_from_graph(f"packed_{after}", graph)


class Int8(nn.Module):
    """A linear layer, and the ReLU after it, by fbgemm: fp32 [N, in] -> [N, out]."""

    def __init__(self, layer: nn.Linear, relu: bool, seen: Range) -> None:
        super().__init__()
        self.relu = relu
        weight = layer.weight.detach()
        scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # PyTorch means to drop this type one day; fbgemm's operators take nothing else yet.
            warnings.simplefilter("ignore")
            narrow = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(narrow, layer.bias)
        low, high = min(seen[0], 0.0), max(seen[1], 0.0)
        self.scale = max(high - low, 1e-12) / _STEPS
        self.zero = round(-low / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        # Quantised here and not in the operator: that would take the range for 8 bits.
        x = x.clamp(-self.zero * self.scale, (_STEPS - self.zero) * self.scale)
        ops = torch.ops.quantized
        product = (
            ops.linear_with_input_q_dq_qweight_dq_relu_output_fp32
            if self.relu
            else ops.linear_with_input_q_dq_qweight_dq_output_fp32
        )
        return product(x, self.scale, self.zero, self.packed)  # type: ignore[no-any-return]


def _ranges(
    module: nn.Module, chains: Sequence[nn.Module], run: Callable[[nn.Module], Any]
) -> dict[nn.Module, Range]:
    """Of the inputs of every linear layer in `chains`, as `run` executes the module."""
    seen: dict[nn.Module, Range] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(x) for x in torch.aminmax(inputs[0]))
        before = seen.get(layer, (low, high))
        seen[layer] = min(low, before[0]), max(high, before[1])

    layers = {m for chain in chains for m in chain.modules() if isinstance(m, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


__all__ = ["InBF16", "Int8", "Packed", "has_products", "is_chain", "rewrite"]
