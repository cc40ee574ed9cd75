"""A user's own model as a runtime: any form, one call of the artifact a request.

`own_torchscript.py` does the same for TorchScript without holding the GIL in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deeprecsys.artifacts.form import reason
from deeprecsys.artifacts.model import ModelFailed, OwnModel, pieces
from deeprecsys.core import Answer, Inputs, join_inputs, slice_inputs
from deeprecsys.runtimes import Scores


class Own:
    """Slices are views of the query's inputs; a request larger than the artifact takes is several
    calls."""

    def __init__(self, model: OwnModel) -> None:
        self._model, self.name = model, model.form.name
        self._answer = Answer(model.outputs)

    def enter_thread(self) -> None:
        self._model.form.enter_thread()

    def prepare(self, inputs: Inputs, scores: Scores) -> Any:
        """A tuple that begins with both."""
        return inputs, scores

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        inputs, scores = prepared
        specs = self._model.inputs
        for first, last in pieces(hi - lo, self._model.most_items):
            part = slice_inputs(specs, inputs, lo + first, lo + last)
            try:
                self._model.write(part, last - first, scores[lo + first : lo + last])
            except ModelFailed:
                raise
            except Exception as error:
                raise ModelFailed(reason(error)) from error

    def forget(self, prepared: Any) -> None:
        pass

    def execute_together(self, pieces: Sequence[tuple[Any, int, int]]) -> None:
        """As one batch; each by itself where a model must see a query alone."""
        if self._model.whole:
            for piece in pieces:
                self.execute(*piece)
            return
        specs = self._model.inputs
        sizes = [hi - lo for _, lo, hi in pieces]
        parts = [slice_inputs(specs, prepared[0], lo, hi) for prepared, lo, hi in pieces]
        scores = self._answer.empty(sum(sizes))
        joined = join_inputs(specs, parts, sizes)
        self.execute(self.prepare(joined, scores), 0, len(scores))
        at = 0
        for (prepared, lo, hi), size in zip(pieces, sizes, strict=True):
            prepared[1][lo:hi] = scores[at : at + size]
            at += size


__all__ = ["Own"]
