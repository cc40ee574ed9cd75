"""Which weights a model has, in a few letters: what a policy was made for, and a server holds.

The same for every execution of a model, so it is never of the tensors that are executed: a model
of the zoo is what its specification, scale and seed make of it, a user's own is its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeprecsys.models import Model, load_model

_LETTERS = 16
# The weights of the layers do not depend on the scale, and of the tables' a few rows will do.
_SCALE = 1e-6
# Of a file: all of it up to so many bytes, else so many pieces of it, evenly spread.
_WHOLE, _PIECES, _PIECE = 1 << 26, 4096, 512


def weights_hash(model: Any) -> str:
    """16 letters, the same on every machine; in less than a second, however large the tables.

    Of the zoo: specification, scale and seed, and the bytes of what they make at a tiny scale. Of
    a user's own: name, size and bytes of its file and of those named after it.
    """
    parts = _of_zoo(model) if isinstance(model, Model) else _of_files(model.path)
    said = hashlib.sha256()
    for part in parts:
        said.update(hashlib.sha256(part).digest())
    return said.hexdigest()[:_LETTERS]


def _of_zoo(model: Model) -> Iterator[Any]:
    tiny = load_model(
        model.name, scale=_SCALE, seed=model.seed, variant=model.variant, check_memory=False
    )
    yield f"{model.spec} {model.scale!r} {model.seed}".encode()
    for name, tensor in tiny.module.state_dict().items():
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.contiguous().numpy().data


def _of_files(path: Path) -> Iterator[bytes]:
    """Weights too large for an ONNX file lie in others, whose names begin with its own."""
    found = path.rglob("*") if path.is_dir() else path.parent.glob(path.name + "*")
    for file in sorted(file for file in found if file.is_file()):
        size = file.stat().st_size
        yield f"{file.name} {size}".encode()
        with file.open("rb") as opened:
            if size <= _WHOLE:
                yield opened.read()
                continue
            for number in range(_PIECES):
                opened.seek((size - _PIECE) * number // (_PIECES - 1))
                yield opened.read(_PIECE)


__all__ = ["weights_hash"]
