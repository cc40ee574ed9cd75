"""A user's own TorchScript, from a file or traced of a `.pt2`: one call into C++ a request, as
`torchscript.py` does for the zoo. Of the form it takes `module`, `kind` and `place`.

Around the loaded module a method is compiled that slices the inputs, runs it, looks at what came
out and writes it in place, so that a worker hardly holds the GIL. Its text is made for the module:
how many inputs there are, in which form they are taken, and how the outputs come.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deeprecsys._native import Executor
from deeprecsys.artifacts.form import reason
from deeprecsys.artifacts.model import WHOLE, ModelFailed, OwnModel, pieces
from deeprecsys.core import Answer, Inputs, OutputSpec, offsets
from deeprecsys.runtimes import Scores
from deeprecsys.runtimes.eager import from_numpy
from deeprecsys.runtimes.native_torch import DATATYPES, native_executor
from deeprecsys.runtimes.own import Own

# Of a parameter that stays an attribute: as constants of a graph they would never be freed.
_LARGE_BYTES = 1 << 20


class OwnTorchScript(Own):
    """Raises RuntimeError from `__init__` where no method can be compiled around the module."""

    def __init__(self, model: OwnModel) -> None:
        super().__init__(model)
        form: Any = model.form
        self._specs, self._tried = model.inputs, model.tried
        # Inputs that are not cut at lo and hi: what a query has once, and bags' values.
        self._plain = all(s.scope == "candidate" and not s.ragged and not s.bounds
                          for s in self._specs)  # fmt: skip
        self._run = _compiled(form, _source(model, form, self._plain))

    def prepare(self, inputs: Inputs, scores: Scores) -> Any:
        n = len(scores)
        if 0 < n < self._tried.least or self._model.users_apart(inputs):
            return inputs, scores
        fitted = self._model.fitted(inputs, n)[0] if n else inputs
        tensors = [from_numpy(fitted[spec.name]) for spec in self._specs]
        places = None if self._plain else self._places(fitted)
        return fitted, scores, tensors, places, from_numpy(scores)

    def executor(self, columns: Sequence[str], most_items: int) -> Executor | None:
        """None where a request needs more than slices of plain tensors."""
        tried, alike = self._tried, np.dtype(Answer(self._model.outputs).dtype) == np.float32
        if not (self._plain and alike and tried.least <= 1 and tried.most is None):
            return None
        if any(spec.datatype not in DATATYPES for spec in self._specs):
            return None
        at = {name: column for column, name in enumerate(columns)}
        inputs = [(at[spec.name], spec.datatype, spec.shape) for spec in self._specs]
        scores = sum(output.columns for output in self._model.outputs)
        return native_executor(inputs, [], [], scores, self._run, None, None)

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        if len(prepared) == 2 or hi - lo < self._tried.least:
            super().execute((prepared[0], prepared[1]), lo, hi)
            return
        _, _, tensors, places, scores = prepared
        try:
            for first, last in pieces(hi - lo, self._tried.most):
                if last - first < self._tried.least:
                    super().execute((prepared[0], prepared[1]), lo + first, lo + last)
                elif places is None:
                    self._run(tensors, scores, lo + first, lo + last)
                else:
                    cuts = _cuts(places, lo + first, lo + last)
                    self._run(tensors, *cuts, scores, lo + first, lo + last)
        except torch.jit.Error as error:
            raise ModelFailed(reason(error)) from error

    def _places(self, inputs: Inputs) -> list[Any]:
        """Of each input: where a candidate's part begins, and how it is rebased."""
        by_name = {spec.name: spec for spec in self._specs}
        found: list[Any] = []
        for spec in self._specs:
            counting = by_name[spec.ragged] if spec.ragged else spec
            array = inputs[spec.name]
            if (
                spec.scope == "query"
                and counting.name in self._tried.once
                and (len(inputs[counting.name]) - (counting.bounds == "offsets") == 1)
            ):
                found.append(len(array))
            elif spec.ragged:
                found.append(offsets(counting, inputs[counting.name], len(array)).tolist())
            elif spec.bounds in ("starts", "offsets", "ends"):
                values = next(s for s in self._specs if s.ragged == spec.name)
                found.append((spec.bounds, offsets(spec, array, len(inputs[values.name])).tolist()))
            else:
                found.append(None)
        return found


def _cuts(places: Sequence[Any], lo: int, hi: int) -> tuple[list[int], list[int], list[int]]:
    """First and last of each input's part, and what is taken off its values."""
    firsts, lasts, bases = [], [], []
    for place in places:
        first, last, base = lo, hi, 0
        if isinstance(place, int):
            first, last = 0, place
        elif isinstance(place, list):
            first, last = place[lo], place[hi]
        elif place is not None:
            bounds, at = place
            base, last = at[lo], hi + (bounds == "offsets")
        firsts.append(first)
        lasts.append(last)
        bases.append(base)
    return firsts, lasts, bases


def _source(model: OwnModel, form: Any, plain: bool) -> str:
    """The method's text."""
    count = len(model.inputs)
    if plain:
        head = "inputs: List[Tensor], scores: Tensor, lo: int, hi: int"
        rows = ["rows = [inputs[i][lo:hi] for i in range(len(inputs))]"]
    else:
        head = (
            "inputs: List[Tensor], firsts: List[int], lasts: List[int], bases: List[int], "
            "scores: Tensor, lo: int, hi: int"
        )
        rows = [
            "rows: List[Tensor] = []",
            "for i in range(len(inputs)):",
            "    row = inputs[i][firsts[i]:lasts[i]]",
            "    if bases[i] != 0:",
            "        row = row - bases[i]",
            "    rows.append(row)",
        ]
    given = ", ".join(f"rows[{i}]" for i in range(count))
    if form.kind.startswith("List"):
        given = "rows"
    elif form.kind.startswith("Dict"):
        given = "{" + ", ".join(f"{s.name!r}: rows[{i}]" for i, s in enumerate(model.inputs)) + "}"
    lines = [*rows, f"answer = self.model.forward({given})", "n = hi - lo"]
    at = 0
    for number, output in enumerate(model.outputs):
        name, columns = f"output_{number}", output.columns
        lines += [
            f"{name} = {form.place(output.name)}",
            f"if {name}.dim() == 0 or {name}.size(0) != n or {name}.numel() != n * {columns}:",
            f"    raise RuntimeError({output.name!r} + ' has shape ' + str({name}.size())"
            " + ' of ' + str(n) + ' candidates')",
            *_exact(name, output),
            *_written(name, output, at, alone=len(model.outputs) == 1),
        ]
        at += columns
    lines += [
        "total = float(scores[lo:hi].sum())",  # which is cheaper than to look at each
        "if total != total and bool(torch.isnan(scores[lo:hi]).any()):",
        "    raise RuntimeError('a score is not a number')",
    ]
    return f"def forward(self, {head}) -> None:\n" + "".join(f"    {line}\n" for line in lines)


def _exact(name: str, output: OutputSpec) -> list[str]:
    """The lines that refuse a whole number that a double does not hold."""
    if output.datatype != "INT64":
        return []
    beyond = f"({name} > {WHOLE}) | ({name} < -{WHOLE})"
    said = f"{output.name} has a whole number beyond 2^53, which would be rounded"
    return [f"if bool(({beyond}).any()):", f"    raise RuntimeError({said!r})"]


def _written(name: str, output: OutputSpec, at: int, alone: bool) -> list[str]:
    """The lines that put an output in its place; of one alone as few as can be: a slice and a
    reshape cost 3 % of a small request."""
    if alone and len(output.shape) == 1:
        return [f"scores[lo:hi].copy_({name})"]
    columns = output.columns
    return [f"scores[lo:hi, {at}:{at + columns}].copy_({name}.reshape(n, {columns}))"]


class _Around(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def _around(module: Any, source: str) -> Any:
    """What Python compiles it keeps for ever, a megabyte each; the core's is freed."""
    try:
        from deeprecsys._native_torch import around
    except ImportError:  # of a class of its own: PyTorch compiles modules of one type once
        made = torch.jit.script(type("Around", (_Around,), {})(module))
        made.define(source)
        return made
    return torch.jit._recursive.wrap_cpp_module(around(module, source))  # type: ignore[no-untyped-call]


def _compiled(form: Any, source: str) -> Any:
    """Frozen, unless the module was left in training, where freezing would change it."""
    module = form.module
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        around = _around(module, source)
        if module.training or any(child.training for child in module.modules()):
            return around
        around.eval()
        large = [
            name
            for name, tensor in [*around.named_parameters(), *around.named_buffers()]
            if tensor.nbytes > _LARGE_BYTES
        ]
        return torch.jit.freeze(around, preserved_attrs=large, optimize_numerics=False)


__all__ = ["OwnTorchScript"]
