"""A user's own PyTorch module, or an exported graph, in another execution.

What it is made of is found, not known: rows of `nn.Embedding`, linear layers and chains of them. In
an exported graph these are operators; there, what hangs together becomes a module first. Then it is
as in the zoo: `layers.py` replaces chains, `row_types.py` narrows rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deeprecsys.core import Execution, UserError
from deeprecsys.executions import copied, parts
from deeprecsys.executions.layers import is_chain, rewrite
from deeprecsys.models.row_types import gather, narrowed

_OPS = torch.ops.aten


def rewritten(module: nn.Module, execution: Execution, run: Callable[[Any], Any]) -> nn.Module:
    """A copy of an exact one, with the same tensors where they stay the same.

    run: executes a module like it over examples, for the ranges of int8 layers. UserError for what
    it has not, or this machine cannot.
    """
    if execution.user == "query":
        raise UserError("user=query is for published models: an own one is not taken apart")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, of how it copies a graph
        module = copied(module)
        if isinstance(module, fx.GraphModule):
            _as_modules(module)
    chains = [(name, part) for name, part in parts(module) if is_chain(part)]
    known = [name for name, _ in chains]
    if unknown := sorted(set(execution.kept) - set(known)):
        said = ", ".join(known) or "none"
        raise UserError(f"it has no layers {', '.join(unknown)}; it has {said}")
    if execution.rows != "fp32" and not _narrow(module, execution):
        raise UserError("it has no embedding rows that can be narrowed")
    if execution.layers != "fp32" or execution.packed:
        if not chains:
            raise UserError("it has no linear layers that can be replaced")
        rewrite(module, execution, chains, run)
    return module


class Rows(nn.Module):
    """`nn.Embedding` of narrow rows: ids [..] -> fp32 [.., E]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", weight)

    def forward(self, ids: Tensor) -> Tensor:
        assert isinstance(self.rows, Tensor)
        return gather(self.rows, ids)


class Bags(nn.Module):
    """`nn.EmbeddingBag` of fp16 rows, without weights a look-up: fp32 [B, E]."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.register_buffer("rows", narrowed(bag.weight.detach(), "fp16"))
        self.mode, self.last, self.padding = bag.mode, bag.include_last_offset, bag.padding_idx

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        assert isinstance(self.rows, Tensor)
        return F.embedding_bag(
            ids, self.rows, offsets, mode=self.mode, include_last_offset=self.last,
            padding_idx=self.padding,
        ).float()  # fmt: skip


def _narrow(module: nn.Module, execution: Execution) -> int:
    """How many tables are narrow now: each once, whoever shares it."""
    made: dict[int, nn.Module] = {}
    for name, table in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(table, nn.Embedding | nn.EmbeddingBag) or table.max_norm is not None:
            continue
        if table.weight.dtype != torch.float32:
            continue
        key = id(table.weight)
        if isinstance(table, nn.Embedding):
            if key not in made:
                made[key] = Rows(narrowed(table.weight.detach(), execution.rows))
            other = made[key]
        elif execution.rows == "fp16":
            other = Bags(table)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, other)
        made.setdefault(id(other), other)
    return len(made)


def _as_modules(module: fx.GraphModule) -> None:
    """Operators that are look-ups or linear layers as the modules that they were exported of;
    layers that only feed each other as one chain."""
    tables: dict[str, str] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _OPS.embedding.default:
            _look_up(module, node, tables)
        elif node.target is _OPS.linear.default:
            _chain_from(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _look_up(module: fx.GraphModule, node: fx.Node, tables: dict[str, str]) -> None:
    weight, ids = node.args[:2]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return
    path = str(weight.target)
    if path not in tables:
        tables[path] = f"table_{len(tables)}"
        table = nn.Embedding(1, 1)
        table.weight = nn.Parameter(_attribute(module, path).detach(), requires_grad=False)
        module.add_submodule(tables[path], table)
    _replace(module, node, node, tables[path], ids)


def _chain_from(module: fx.GraphModule, first: fx.Node) -> None:
    """`first`, unless it is in a chain already, and what follows it and nobody else reads."""
    if not first.users:
        return
    layers: list[nn.Module] = []
    node, last = first, first
    while layer := _layer(module, node):
        layers.append(layer)
        last = node
        if len(node.users) != 1:
            break
        (follower,) = node.users
        if follower.args[:1] != (node,):
            break
        node = follower
    if layers:
        weight = str(first.args[1].target)  # type: ignore[union-attr]
        name = weight.removesuffix(".weight").replace(".", "_")
        while hasattr(module, name):
            name += "_"
        module.add_submodule(name, nn.Sequential(*layers))
        _replace(module, first, last, name, first.args[0])


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    if node.target in (_OPS.relu.default, _OPS.relu_.default):
        return nn.ReLU()
    if node.target is not _OPS.linear.default:
        return None
    known = [a for a in node.args[1:] if isinstance(a, fx.Node) and a.op == "get_attr"]
    if len(known) != len(node.args) - 1:
        return None
    weight, *bias = (_attribute(module, str(one.target)) for one in known)
    if weight.dtype != torch.float32:
        return None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias), device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias:
        made.bias = nn.Parameter(bias[0].detach(), requires_grad=False)
    return made


def _replace(module: fx.GraphModule, first: fx.Node, last: fx.Node, name: str, given: Any) -> None:
    """The nodes from `first` to `last` by one call of the submodule `name`."""
    with module.graph.inserting_after(last):
        call = module.graph.call_module(name, (given,))
    last.replace_all_uses_with(call)
    while last is not first:
        before = last.args[0]
        module.graph.erase_node(last)
        assert isinstance(before, fx.Node)
        last = before
    module.graph.erase_node(first)


def _attribute(module: nn.Module, path: str) -> Tensor:
    parent, _, last = path.rpartition(".")
    found = getattr(module.get_submodule(parent), last)
    assert isinstance(found, Tensor)
    return found


__all__ = ["Bags", "Rows", "rewritten"]
