"""How a request is executed: a model's module rewritten in narrower types, or packed.

Knows modules and tensors, not queries or time. `executed` answers the same model with another
module; a runtime executes it like any other. `layers.py` holds what takes the place of matrix
products, `models/row_types.py` what takes the place of embedding rows. Which execution is worth it
is measured elsewhere, and what it does to the scores is `analysis/drift.py`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprecsys.core import EXACT, Execution, UserError, repeat_inputs
from deeprecsys.models.memory import available_bytes
from deeprecsys.models.spec import row_bytes

if TYPE_CHECKING:
    from torch import nn

    from deeprecsys.models import Model

# In which types, and forms, products can be computed where a processor has them.
LAYERS = (
    Execution(packed=True),
    Execution(layers="bf16"),
    Execution(layers="bf16", packed=True),
    Execution(layers="int8"),
)
# Candidates from which the ranges of activations are taken, for int8 layers.
CALIBRATED = 2048
# Free memory that a narrow copy of the tables must leave.
ROOM_BYTES = 1 << 29


def executed(model: Any, execution: Execution) -> Any:
    """The model, published or a user's own, in that execution; itself for how it is already.
    Tensors are shared where they are the same.

    Raises UserError where this processor or PyTorch cannot, or the model has no such part.
    """
    if execution == model.execution:
        return model
    if (own := getattr(model, "executed", None)) is not None:  # a user's own, by its form's means
        return own(execution)
    if model.execution != replace(EXACT, rows=execution.rows) and model.execution != EXACT:
        raise UserError(
            f"a model executed as {model.execution} cannot become {execution}: begin with exact"
        )
    if execution.user == "query" and not model.query_inputs:
        raise UserError(
            f"{model.name} as it is loaded has no inputs of the user's own: "
            "add --query-inputs, or leave user=query out"
        )
    unknown = set(execution.kept) - {name for name, _ in parts(model.module)}
    if unknown:
        raise UserError(
            f"{model.name} has no layers {', '.join(sorted(unknown))}; "
            f"it has {', '.join(name for name, _ in parts(model.module))}"
        )
    module = copied(model.module)
    _narrow(module, execution)
    if execution.layers != "fp32" or execution.packed:
        from deeprecsys.executions.layers import rewrite

        rewrite(module, execution, parts(module), lambda each: _run(model, each))
    return replace(model, module=module, execution=execution)


def parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """What an execution can name in `kept`: perceptrons, layers outside of them, and the blocks
    with products of their own; with their names."""
    return list(_parts(module, ""))


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    from deeprecsys.executions.layers import has_products, is_chain

    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if is_chain(child):
            yield path, child
            continue
        if has_products(child):
            yield path, child
        yield from _parts(child, path + ".")


def copied(module: nn.Module) -> nn.Module:
    """Modules of their own, with the same tensors."""
    memo = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


def _narrow(module: nn.Module, execution: Execution) -> None:
    from torch import nn as torch_nn

    from deeprecsys.models.layers import Behaviours, Lookup, SumPooled
    from deeprecsys.models.row_types import kind_of, narrowed, width_of

    tables = [m for m in module.modules() if isinstance(m, Lookup | SumPooled | Behaviours)]
    if not tables:
        return
    before = tables[0].weight  # all have the same
    if kind_of(before) == execution.rows:
        return
    need = len(before) * row_bytes(width_of(before), execution.rows) + ROOM_BYTES
    if need > (free := available_bytes()):
        raise UserError(
            f"a copy of the tables in {execution.rows} needs {need / 1e9:.1f} GB beside the exact "
            f"ones, and {free / 1e9:.1f} GB are free: try a smaller --scale"
        )
    weight = narrowed(before, execution.rows)
    shared = torch_nn.Parameter(weight, requires_grad=False)
    for block in tables:
        block.weight = shared


def _run(model: Model, module: nn.Module) -> Any:
    """Such a module over examples of the model, for whoever watches what passes through it."""
    import torch

    inputs = repeat_inputs(
        model.inputs, model.example(CALIBRATED, np.random.default_rng(0)), CALIBRATED
    )
    with torch.inference_mode():
        return module([torch.from_numpy(array) for array in inputs.values()])


__all__ = ["CALIBRATED", "LAYERS", "copied", "executed", "parts"]
