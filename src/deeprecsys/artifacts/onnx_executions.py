"""An ONNX graph in another execution, by onnxruntime's own means: int8 products, and narrow rows.

Ranges of the activations are calibrated, as in the zoo: onnxruntime's dynamic ones would make a
candidate's score depend on its neighbours. Knows a file and arrays, makes bytes.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, reason
from deeprecsys.core import Execution, UserError

_PRODUCTS = ("MatMul", "Gemm")
_AT_ONCE = 256  # examples of a calibrating run


def rewritten(path: Path, execution: Execution, examples: Mapping[str, Array]) -> bytes:
    """The model's new bytes. UserError for what onnxruntime has not."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise UserError("rewriting it needs onnx: pip install onnx") from error
    if execution.user == "query" or execution.kept:
        raise UserError("user=query and kept are for models whose layers are known")
    if execution.packed or execution.layers == "bf16":
        raise UserError("onnxruntime packs by itself, and has no bf16 products on this processor")
    if execution.rows == "int8":
        raise UserError("onnxruntime looks nothing up in rows of int8: say rows=fp16")
    model = onnx.load(str(path))
    if execution.rows == "fp16" and not _narrow(model):
        raise UserError("it has no embedding rows that can be narrowed")
    if execution.layers == "int8":
        model = _quantized(model, examples)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _narrow(model: Any) -> int:
    """Tables that are only looked up become fp16, and what is looked up fp32 again."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes, narrowed = list(graph.node), 0
    for weight in graph.initializer:
        by = readers.get(weight.name, [])
        looked_up = all(n.op_type == "Gather" and n.input[0] == weight.name for n in by)
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2 or not by:
            continue
        if not looked_up:
            continue
        half = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, weight.name))
        for node in by:
            wide, node.output[0] = node.output[0], node.output[0] + "_fp16"
            cast = helper.make_node("Cast", [node.output[0]], [wide], to=TensorProto.FLOAT)
            nodes.insert(next(i for i, n in enumerate(nodes) if n is node) + 1, cast)
        narrowed += 1
    del graph.value_info[:]  # it would contradict
    del graph.node[:]
    graph.node.extend(nodes)
    return narrowed


def _quantized(model: Any, examples: Mapping[str, Array]) -> Any:
    import onnx
    from onnxruntime import quantization as q

    class Examples(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = _pieces(examples)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    if not any(node.op_type in _PRODUCTS for node in model.graph.node):
        raise UserError("it has no linear layers that can be replaced")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, str(before))
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises there
        try:
            q.quantize_static(
                str(before), str(after), Examples(), quant_format=q.QuantFormat.QDQ,
                op_types_to_quantize=list(_PRODUCTS), per_channel=True, reduce_range=True,
                weight_type=q.QuantType.QInt8, activation_type=q.QuantType.QUInt8,
            )  # fmt: skip
        except Exception as error:
            raise UserError(f"onnxruntime cannot quantise it: {reason(error)}") from error
        finally:
            logging.root.setLevel(level)
        return onnx.load(str(after))


def _pieces(examples: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    n = max(map(len, examples.values()))
    for lo in range(0, n, _AT_ONCE):
        yield {
            name: array[lo : lo + _AT_ONCE] if len(array) == n else array
            for name, array in examples.items()
        }


__all__ = ["rewritten"]
