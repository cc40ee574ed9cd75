"""ONNX files, by onnxruntime: names, types and shapes are all there.

One session serves every thread: with one thread of its own and no spinning, `run` computes in the
caller's thread, and without the GIL.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, Tensor, damaged, fixed_rows, needed
from deeprecsys.core import BYTES, Execution, UserError

NAME = "onnx"
_DATATYPES = {
    "float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL", "string": BYTES,
    **{f"{u}int{bits}": f"{u.upper()}INT{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class Onnx:
    name = NAME
    rewritable = True

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ModuleNotFoundError as error:
            raise needed("onnxruntime", "onnx", path) from error
        self._path = path
        try:
            self._session = _session(str(path.resolve()))
        except Exception as error:
            raise damaged(path, "ONNX model", error) from error
        inputs = tuple(_tensor(path, node) for node in self._session.get_inputs())
        outputs = tuple(_tensor(path, node) for node in self._session.get_outputs())
        rows = fixed_rows(inputs)
        self.found = Found(inputs, outputs, rows or 1, rows)
        self._text = [tensor.datatype == BYTES for tensor in inputs]
        self._inputs = [tensor.name for tensor in inputs]
        self._outputs = [tensor.name for tensor in outputs]

    def executed(self, execution: Execution, examples: Sequence[Array]) -> Onnx:
        """UserError where onnxruntime has no means for it."""
        from deeprecsys.artifacts.onnx_executions import rewritten

        other = copy.copy(self)
        given = dict(zip(self._inputs, examples, strict=True))
        other._session = _session(rewritten(self._path, execution, given))
        return other

    def bind(self, names: Sequence[str]) -> None:
        pass

    def enter_thread(self) -> None:
        pass

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        if any(self._text):
            inputs = [
                _as_text(array) if text else array
                for array, text in zip(inputs, self._text, strict=True)
            ]
        given = dict(zip(self._inputs, inputs, strict=True))
        return dict(zip(self._outputs, self._session.run(None, given), strict=True))


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _tensor(path: Path, node: Any) -> Tensor:
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _DATATYPES:
        raise UserError(f"{path}: {node.name} is a {node.type}, which the protocol does not have")
    shape = node.shape and tuple(n if isinstance(n, int) else None for n in node.shape)
    return Tensor(node.name, _DATATYPES[kind], shape or None)


def _as_text(array: Array) -> Array:
    flat = [item.decode() if isinstance(item, bytes) else str(item) for item in array.flat]
    return np.array(flat, object).reshape(array.shape)


__all__ = ["NAME", "Onnx"]
