"""`torch.export` archives (`.pt2`): names, types, shapes with their free dimensions, outputs.

The program's own module is Python, which holds the GIL between operators. So it is traced into
TorchScript, and where that computes the same, bit for bit, at other sizes, the runtime takes the
trace; a program that reads its sizes as numbers cannot be traced, and stays as it is.

`torch.export.load` unpickles where an archive asks for it: such an archive needs trust.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import (
    Array,
    Form,
    Found,
    Tensor,
    damaged,
    fixed_rows,
    foreign_code,
    needed,
)
from deeprecsys.artifacts.torchscript import named
from deeprecsys.core import Execution

NAME = "exported"
_MOST = 1 << 30  # an upper bound beyond this is none
_TRACED = 5  # candidates


def open_pt2(path: Path, trust: bool = False) -> Form:
    """An exported program, or a package of compiled code, which have the same suffix."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise damaged(path, "exported program", error) from error
    if any("/data/aotinductor/" in name and name.endswith((".so", ".cpp")) for name in names):
        from deeprecsys.artifacts.aotinductor import AotInductor

        return AotInductor(path, trust)
    return Exported(path, trust)


class Exported:
    """`module`, `kind`: of the trace, if there is one, as the runtime takes a TorchScript file."""

    name = NAME
    kind = "Tensor"
    rewritable = True

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise needed("torch", "torch", path) from error
        if not trust:
            _check_unpickled(path)
        try:
            program = torch.export.load(str(path))
            self._flat = _Flat(program)
        except Exception as error:
            raise damaged(path, "exported program", error) from error
        inputs, most = _inputs(program)
        rows = fixed_rows(inputs)
        self.found = Found(inputs, None, rows or 1, rows or most)
        self.module: Any = None
        self._program = program

    def bind(self, names: Sequence[str]) -> None:
        """Traces it, now that nothing else is to be known."""
        self.module = self._traced() if self.found.least == 1 else None

    def executed(self, execution: Execution, examples: Sequence[Array]) -> Exported:
        """Its graph rewritten, and traced anew. UserError where that cannot be."""
        from deeprecsys.executions.own import rewritten

        other, flat = copy.copy(self), self._flat
        given = _tensors(examples)
        module = rewritten(flat.module, execution, lambda module: flat.over(module).run(given))
        other._flat = flat.over(module)
        other.module = other._traced() if self.module is not None else None
        return other

    def place(self, output: str) -> str:
        names = self._flat.names
        return "answer" if len(names) == 1 else f"answer[{names.index(output)}]"

    def enter_thread(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.autograd.grad_mode.set_grad_enabled(False)

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        import torch

        with torch.no_grad():
            answer = self._flat.run(_tensors(inputs))
        return {name: tensor.detach().numpy() for name, tensor in answer.items()}

    def _traced(self) -> Any:
        """None where tracing, or what it computes, fails."""
        import torch

        example = self._program.example_inputs
        if example is None:
            return None
        try:
            given = [t for t in torch.utils._pytree.tree_leaves(example)]
            self._flat.run(given)  # which learns the outputs' names
            rows = _rows(given, self.found.inputs or (), _TRACED)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                module = torch.jit.trace(  # type: ignore[no-untyped-call]
                    _module(self._flat), tuple(rows), check_trace=False
                )
                same = all(self._same(module, given, n) for n in (_TRACED, 1, 17))
        except Exception:
            return None
        return module if same else None

    def _same(self, module: Any, given: Sequence[Any], n: int) -> bool:
        import torch

        rows = _rows(given, self.found.inputs or (), min(n, self.found.most or n))
        expected = self._flat.run(rows).values()
        answer = module(*rows)
        found = [answer] if isinstance(answer, torch.Tensor) else list(answer)
        return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class _Flat:
    """The program as a function of its inputs in order; outputs by name."""

    def __init__(self, program: Any) -> None:
        from torch.utils import _pytree

        self.module, self._spec = program.module(), program.call_spec.in_spec
        self._unflatten = _pytree.tree_unflatten
        self.names: list[str] = []

    def over(self, module: Any) -> _Flat:
        """The same of another module."""
        other = copy.copy(self)
        other.module = module
        return other

    def run(self, tensors: Sequence[Any]) -> dict[str, Any]:
        args, kwargs = self._unflatten(list(tensors), self._spec)
        found = named(self.module(*args, **kwargs))
        self.names = list(found)
        return found


def _tensors(arrays: Sequence[Array]) -> list[Any]:
    import torch

    return [torch.from_numpy(np.require(array, None, ["C", "W"])) for array in arrays]


def _module(flat: _Flat) -> Any:
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat.module

        def forward(self, *tensors: Any) -> Any:
            found = tuple(flat.run(tensors).values())
            return found[0] if len(found) == 1 else found

    return Module()


def _rows(given: Sequence[Any], inputs: Sequence[Tensor], n: int) -> list[Any]:
    """The example's first candidate n times: where a leading dimension is free."""
    return [
        tensor[:1].repeat(n, *[1] * (tensor.dim() - 1))
        if spec.shape and spec.shape[0] is None
        else tensor
        for tensor, spec in zip(given, inputs, strict=True)
    ]


def _inputs(program: Any) -> tuple[tuple[Tensor, ...], int | None]:
    """As declared to the exporter; and the most candidates, if it was given a range."""
    names = set(program.graph_signature.user_inputs)
    found, most = [], None
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        value = node.meta["val"]
        shape = tuple(n if isinstance(n, int) else None for n in value.shape)
        found.append(Tensor(node.name, _datatype(value.dtype), shape))
        if shape and shape[0] is None:
            bounds = program.range_constraints.get(value.shape[0].node.expr)
            upper = getattr(bounds, "upper", None)
            if upper is not None and upper < _MOST:
                most = min(int(upper), most or int(upper))
    return tuple(found), most


def _datatype(dtype: Any) -> str | None:
    """None of a type that numpy lacks (bfloat16)."""
    import torch

    from deeprecsys.core import DTYPES

    try:
        array = torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return None
    return next((name for name, known in DTYPES.items() if known == array.dtype), None)


def _check_unpickled(path: Path) -> None:
    """UserError where loading would run code that somebody put into the archive."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_config.json"):
                    said = json.loads(archive.read(name)).get("config", {})
                    if any(one.get("use_pickle") for one in said.values()):
                        raise foreign_code(path)
                elif "/custom_obj" in name:
                    raise foreign_code(path)
                elif "/sample_inputs/" in name and name.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except (OSError, zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise damaged(path, "exported program", error) from error
    except ValueError:
        raise
    except Exception as error:
        raise foreign_code(path) from error


__all__ = ["NAME", "Exported", "open_pt2"]
