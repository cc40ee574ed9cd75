"""Tensors of the protocol: every datatype there and back, and what disagrees with itself."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.protocol import tensors
from deeprecsys.protocol.reasons import Reason, Refusal


@pytest.mark.parametrize("datatype", tensors.DTYPES)
@given(data=st.data())
def test_every_datatype_returns_from_bytes_and_from_json(datatype, data):
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    items = math.prod(shape)
    raw = data.draw(st.binary(min_size=8 * items, max_size=8 * items))
    if datatype == "BOOL":
        array = np.frombuffer(raw, np.uint8)[:items] % 2 == 1
    else:
        array = np.frombuffer(raw, tensors.DTYPES[datatype])[:items]
    array = array.reshape(shape)
    assert tensors.datatype_of(array) == datatype
    back = tensors.from_bytes("x", datatype, shape, tensors.to_bytes(array, datatype))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    if np.isfinite(array).all():
        for values in (tensors.to_json(array), array.tolist()):
            if np.ndim(values):  # JSON data are a list
                text = json.dumps(values).encode()
                np.testing.assert_array_equal(tensors.from_json("x", datatype, shape, text), array)


def test_bf16_is_rounded_to_nearest_and_bytes_keep_their_lengths():
    values = np.array([1.0, 1.00390625, 3.14159, -2e-3], np.float32)
    back = tensors.from_bytes("x", "BF16", [4], tensors.to_bytes(values, "BF16"))
    np.testing.assert_allclose(back, values, rtol=2**-8)
    words = np.array([b"", b"a", "\u00e9".encode()], object)
    assert list(tensors.from_bytes("x", "BYTES", [3], tensors.to_bytes(words, "BYTES"))) == list(
        words
    )


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("INT32", [2], b"1234567"),
        ("INT32", [-2], b""),
        ("INT32", [1 << 40, 1 << 40], b""),
        ("INT32", [1] * 17, b"1234"),
        ("INT33", [1], b"1234"),
        ("BOOL", [1], b"\x02"),
        ("BYTES", [1], b"\x01\x00"),
        ("BYTES", [1], b"\x09\x00\x00\x00ab"),
        ("BYTES", [2], b"\x01\x00\x00\x00a"),
    ],
)
def test_bytes_that_disagree_with_their_shape_are_refused(datatype, shape, data):
    with pytest.raises(Refusal) as caught:
        tensors.from_bytes("x", datatype, shape, data)
    assert caught.value.reason is Reason.INVALID


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("INT32", [2], "[1, 2.5]"), ("INT32", [2], "[1, 9999999999]"), ("INT32", [1], "[NaN]"),
        ("INT32", [1], "[true]"), ("INT32", [1], '["a"]'), ("INT32", [2, 2], "[[1,2],[3]]"),
        ("INT32", [2, 2], "[[1,2,3],[4,5,6]]"), ("INT32", [2], "[" * 100_000),
        ("INT32", [3], "[1,2]"),
        ("UINT8", [1], "[-1]"), ("FP32", [1], "[1e39]"), ("FP16", [1], "[70000]"),
        ("BOOL", [1], "[1]"), ("BF16", [1], "[1.0]"), ("FP32", [1], "{}"),
    ],
)  # fmt: skip
def test_json_that_is_not_of_its_type_is_refused(datatype, shape, text):
    with pytest.raises(Refusal) as caught:
        tensors.from_json("x", datatype, shape, text.encode())
    assert caught.value.reason is Reason.INVALID
