"""What the load client sends: which values, which bytes, and how answers are read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.client.http import Answer, Malformed
from deeprecsys.client.messages import binary_head, grpc_head, grpc_message
from deeprecsys.client.pools import draw_pool, offsets, pool_items
from deeprecsys.client.server import Description, Tensor
from deeprecsys.client.values import plan, read_values
from deeprecsys.core import UserError
from deeprecsys.protocol import tensors
from deeprecsys.protocol.grpc_schema import message


def described(*inputs, **parameters):
    return Description("s", "1", "p", tuple(Tensor(*one) for one in inputs), parameters)


def drawn(datatype, values=None, shape=(-1, 4), items=2000, **parameters):
    """The values of one input called x, as a server would decode them."""
    columns, _ = plan(described(("x", datatype, shape), **parameters), values and {"x": values})
    (column,) = columns
    pool = draw_pool(columns, items, "uniform", 0)
    rows = column.rows_of(items)
    (view,) = pool.window(0, items)
    return tensors.from_bytes("x", datatype, (rows, *column.shape), view)


@pytest.mark.parametrize("datatype", [name for name in tensors.NAMES if name != "BYTES"])
def test_every_datatype_has_a_default(datatype):
    values = drawn(datatype)
    assert values.shape == (2000, 4)
    if datatype[0] in "BIU" and datatype != "BF16":
        assert set(np.unique(values).tolist()) == {0, 1}
    else:
        assert abs(values.astype(float).mean()) < 0.1
        assert 0.9 < values.astype(float).std() < 1.1


@pytest.mark.parametrize("datatype", ["INT32", "INT64", "UINT16", "FP32", "FP64", "BYTES"])
def test_ids_lie_within_the_rows(datatype):
    ids = drawn(datatype, {"rows": 70}).astype(int)
    assert set(np.unique(ids).tolist()) == set(range(70))


def test_ids_follow_the_index_law():
    columns, _ = plan(described(("x", "INT32", (-1, 50)), **{"rows.x": "1000"}), None)
    counts = {}
    for law in ("uniform", "zipf:1.2"):
        pool = draw_pool(columns, 2000, law, 0)
        counts[law] = np.bincount(np.frombuffer(pool.data[0], np.int32), minlength=1000).max()
    assert counts["zipf:1.2"] > 20 * counts["uniform"]


def test_ranges_and_normals_are_as_described():
    assert set(np.unique(drawn("INT8", {"low": -2, "high": 3})).tolist()) == set(range(-2, 4))
    uniform = drawn("FP32", {"low": 5, "high": 6})
    assert uniform.min() >= 5
    assert uniform.max() <= 6
    assert 99 < drawn("FP64", {"normal": [100, 3]}).mean() < 101
    assert drawn("INT64", {"normal": [100, 3]}).std() < 4


def test_a_row_has_the_shape_that_is_known_or_described():
    assert drawn("FP32", {"shape": [7, 3]}, (-1, -1, 3), 5).shape == (5, 7, 3)
    assert drawn("FP32", {"scope": "query"}).shape == (1, 4)
    assert drawn("FP32", None, (6, 4)).shape == (6, 4)
    assert drawn("FP32", None, (-1,)).shape == (2000,)


def test_what_is_assumed_is_said():
    inputs = [("a", "FP32", (-1, 4)), ("b", "INT32", (-1, -1)), ("c", "INT32", (-1, 2))]
    _, said = plan(described(*inputs, **{"rows.c": "10"}), None)
    assert [line.split(":")[0] for line in said] == ["a", "b", "b"]
    assert "--values" in " ".join(said)
    _, said = plan(described(("a", "FP32", (3, 4))), {"a": {"normal": [0, 1]}})
    assert "alike" in said[0]


@pytest.mark.parametrize(
    ("datatype", "values", "says"),
    [
        ("BYTES", None, 'BYTES.*--values FILE.*"rows"'),
        ("INT8", {"rows": 1000}, "do not fit input x, INT8"),
        ("UINT32", {"low": -1, "high": 4}, "do not fit"),
        ("FP32", {"rows": 3, "low": 1, "high": 2}, "rows, or low and high, or normal"),
        ("FP32", {"low": 1}, "rows, or low and high"),
        ("FP32", {"low": 2, "high": 1}, "a number is wrong"),
        ("FP32", {"rows": 0}, "a number is wrong"),
        ("FP32", {"rows": 1.5}, "a number is wrong"),
        ("FP32", {"normal": [0]}, "a number is wrong"),
        ("FP32", {"scope": "both"}, "a number is wrong"),
        ("FP32", {"shape": [4, 4]}, "has shape"),
        ("FP32", {"shape": [5]}, "has shape"),
        ("FP32", {"size": 3}, "takes rows, low"),
        ("FP32", 3, "takes rows, low"),
        ("FP128", None, "unknown datatype"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(datatype, values, says):
    with pytest.raises(UserError, match=says) as told:
        drawn(datatype, values)
    assert "\n" not in str(told.value)


def test_a_description_of_another_input_is_told():
    with pytest.raises(UserError, match="describes y; the model's inputs: x"):
        plan(described(("x", "FP32", (-1,))), {"y": {"rows": 3}})


def test_inputs_that_the_server_does_not_list_are_described():
    columns, said = plan(
        described(),
        {
            "ids": {"datatype": "INT64", "shape": [3], "rows": 50},
            "user": {"datatype": "FP32", "shape": [8], "normal": [0, 1], "scope": "query"},
            "age": {"datatype": "UINT8", "shape": [], "low": 1, "high": 99},
        },
    )
    assert [(c.name, c.datatype, c.shape, c.rows) for c in columns] == [
        ("ids", "INT64", (3,), None), ("user", "FP32", (8,), 1), ("age", "UINT8", (), None),
    ]  # fmt: skip
    assert said == []


@pytest.mark.parametrize(
    ("tensor", "values", "says"),
    [
        (None, {}, r"names no inputs .* --values FILE, as \{\"ids\""),
        (None, {"x": {"shape": [3]}}, "does not say the datatype of input x: describe"),
        (None, {"x": {"datatype": "FP32"}}, "does not say the shape of a candidate of input x"),
        (None, {"x": {"datatype": "FP31", "shape": []}}, "unknown datatype 'FP31'; known: BOOL"),
        (("x", "", None), {}, "does not say the datatype"),
        (("x", "FP32", (-1,)), {"x": {"datatype": "FP64"}}, "x is FP32, not FP64"),
    ],
)
def test_what_nobody_says_of_an_input_is_asked_for(tensor, values, says):
    with pytest.raises(UserError, match=says) as told:
        plan(described(*[tensor] if tensor else []), values)
    assert "\n" not in str(told.value)


def jagged(counts, values=None, kind="INT32", **parameters):
    inputs = ("dense", "FP32", (-1, 2)), ("ids", "INT64", (-1,)), ("n", kind, (-1,))
    values = values or {
        "ids": {"rows": 9, "ragged": "n"}, "n": {"low": 0, "high": 4, "counts": counts}
    }  # fmt: skip
    columns, said = plan(described(*inputs, **parameters), values)
    return columns, draw_pool(columns, 300, "uniform", 3), said


def tensors_of(columns, pool, offset, size):
    layout, left = pool.layout(offset, size), pool.window(offset, size)
    out = {}
    for column, shape, length in zip(columns, layout.shapes, layout.lengths, strict=True):
        data = left.pop(0) if length else b""
        assert len(data) == length
        out[column.name] = tensors.from_bytes(column.name, column.datatype, shape, data)
    assert not left
    return out


@pytest.mark.parametrize("counts", ["lengths", "ends", "starts", "offsets"])
@given(offset=st.integers(0, 280), size=st.integers(0, 20))
def test_values_and_what_counts_them_agree(counts, offset, size):
    columns, pool, _ = JAGGED[counts]
    sent = tensors_of(columns, pool, offset, size)
    ids, n = sent["ids"], sent["n"]
    assert len(n) - (counts == "offsets") == len(sent["dense"]) == size
    assert ((ids >= 0) & (ids < 9)).all()
    if counts == "lengths":
        assert n.sum() == len(ids)
        assert size < 15 or 0 < n.sum() < 4 * size
    elif size and counts == "ends":
        assert n[-1] == len(ids)
    elif counts == "offsets":
        assert (n[0], n[-1]) == (0, len(ids))
    elif size:
        assert n[0] == 0
        assert n[-1] <= len(ids) <= n[-1] + 4
    assert counts == "lengths" or (np.diff(n) >= 0).all()


JAGGED = {counts: jagged(counts) for counts in ("lengths", "ends", "starts", "offsets")}


def test_the_four_ways_to_count_say_the_same():
    n = {counts: tensors_of(*JAGGED[counts][:2], 20, 50)["n"] for counts in JAGGED}
    assert np.cumsum(n["lengths"]).tolist() == n["ends"].tolist()
    assert (n["ends"] - n["lengths"]).tolist() == n["starts"].tolist()
    assert n["offsets"].tolist() == [*n["starts"], n["ends"][-1]]


def test_values_and_lengths_are_known_by_their_names_or_by_what_the_server_says():
    pair = ("clicks_values", "INT64", (-1,)), ("clicks_lengths", "INT32", (-1,))
    columns, said = plan(described(*pair, **{"rows.clicks_values": "7"}), None)
    assert [column.ragged for column in columns] == ["clicks_lengths", None]
    assert any(line.startswith("clicks_lengths: 0 to 20") for line in said)
    columns, _, _ = jagged("", {"n": {"low": 1, "high": 2}}, **{"ragged.ids": "n", "rows.ids": "5"})
    assert [column.ragged for column in columns] == [None, "n", None]
    assert columns[1].b == 5


def test_a_users_own_history_is_ragged_too():
    inputs = ("ids", "INT64", (-1,)), ("n", "INT32", (-1,))
    values = {"ids": {"rows": 9, "ragged": "n"}, "n": {"low": 1, "high": 9, "scope": "query"}}
    columns, _ = plan(described(*inputs), values)
    sent = tensors_of(columns, draw_pool(columns, 50, "uniform", 0), 3, 17)
    assert sent["n"].tolist() == [len(sent["ids"])]
    values["n"] |= {"counts": "offsets"}
    columns, _ = plan(described(*inputs), values)
    sent = tensors_of(columns, draw_pool(columns, 50, "uniform", 0), 3, 17)
    assert sent["n"].tolist() == [0, len(sent["ids"])]


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ({"ids": {"ragged": "m"}}, "INT32", "'m', which must be another input, of dense, n"),
        ({"ids": {"ragged": "ids"}}, "INT32", "another input"),
        ({"n": {"counts": "ends"}}, "INT32", "n counts for no input"),
        ({"ids": {"ragged": "n"}, "n": {"counts": "sums"}}, "INT32", "is wrong"),
        ({"ids": {"ragged": "n"}, "n": {"low": -1, "high": 3}}, "INT32", "of at least 0"),
        ({"ids": {"ragged": "n"}}, "FP32", "one whole number a candidate"),
        ({"ids": {"ragged": "dense"}}, "INT32", "one whole number a candidate"),
    ],
)
def test_counts_that_cannot_be_meant_are_told(values, kind, says):
    with pytest.raises(UserError, match=says) as told:
        jagged("", values, kind)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("counts", ["lengths", "offsets"])
def test_heads_follow_what_is_ragged(counts):
    columns, pool, _ = JAGGED[counts]
    head = grpc_head("m", columns, None)
    for offset in (0, 5, 40):
        said = grpc_message(head(pool.layout(offset, 6)), pool.window(offset, 6))
        read = message("ModelInferRequest").FromString(said)
        shapes = [tuple(one.shape) for one in read.inputs]
        assert shapes == list(pool.layout(offset, 6).shapes)
        assert list(map(len, read.raw_input_contents)) == list(pool.layout(offset, 6).lengths)


def test_a_description_file_is_read(tmp_path):
    path = tmp_path / "values.json"
    path.write_text('{"x": {"rows": 3}}')
    assert read_values(str(path)) == {"x": {"rows": 3}}
    path.write_text("[1]")
    with pytest.raises(UserError, match="write an object"):
        read_values(str(path))
    path.write_text("{")
    with pytest.raises(UserError, match="as JSON"):
        read_values(str(path))
    with pytest.raises(UserError, match="No such file"):
        read_values(str(tmp_path / "none"))


def test_a_pool_holds_thousands_of_candidates_and_bounded_bytes():
    def items(width, largest):
        columns, _ = plan(described(("x", "UINT8", (-1, width))), None)
        return pool_items(columns, largest)

    assert items(4, 100) * 4 == 64 << 20
    assert items(20_000, 100) == 4096
    assert items(200_000, 100) * 200_000 <= 256 << 20
    assert items(200_000, 3000) == 3000
    with pytest.raises(UserError, match="smaller --sizes"):
        items(2_000_000, 3000)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(60, 200))
def test_windows_lie_within_the_pool(sizes, items):
    columns, _ = plan(described(("x", "FP32", (-1, 2)), ("y", "FP32", (7, 2))), None)
    starts = offsets(np.array(sizes, dtype=np.int64), columns, items)
    rows = [max(size, 7) for size in sizes]
    assert all(a >= 0 and a + n <= items for a, n in zip(starts.tolist(), rows, strict=True))


COLUMNS, _ = plan(
    described(("a", "FP32", (-1, 3)), ("b", "INT64", (-1, 2)), ("c", "UINT8", (1, 5))), None
)
POOL = draw_pool(COLUMNS, 300, "uniform", 0)


@given(st.integers(0, 290), st.integers(0, 10))
def test_the_hand_made_message_is_what_the_library_reads(offset, size):
    said = grpc_message(
        grpc_head("m", COLUMNS, 7)(POOL.layout(offset, size)), POOL.window(offset, size)
    )
    read = message("ModelInferRequest").FromString(said)
    assert read.model_name == "m"
    assert read.parameters["timeout"].int64_param == 7
    assert [list(one.shape) for one in read.inputs] == [[size, 3], [size, 2], [1, 5]]
    assert [len(raw) for raw in read.raw_input_contents] == [12 * size, 16 * size, 5]
    assert read.raw_input_contents[2] == bytes(POOL.data[2][5 * offset : 5 * offset + 5])


@given(st.integers(0, 290), st.integers(0, 10))
def test_the_head_tells_the_bytes_that_follow(offset, size):
    head, total = binary_head("POST / HTTP/1.1\r\n", COLUMNS, None)(POOL.layout(offset, size))
    views = POOL.window(offset, size)
    assert total == len(head) + sum(map(len, views))
    fields, told = head.split(b"\r\n\r\n", 1)
    said = json.loads(told)
    sizes = [one["parameters"]["binary_data_size"] for one in said["inputs"]]
    assert sum(sizes) == sum(map(len, views))
    assert b"Inference-Header-Content-Length: %d" % len(told) in fields
    assert b"Content-Length: %d" % (len(told) + sum(sizes)) in fields
    assert "timeout" not in said["parameters"]


BODY = b'{"error": "why"}'
WAYS = {
    "length": b"HTTP/1.1 429 Too Many\r\ncontent-length: 16\r\nX: y\r\n\r\n" + BODY,
    "chunked": b"HTTP/1.1 429 X\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\n{\"err\r\nb\r\nor\": \"why\"}\r\n0\r\nTrailer: x\r\n\r\n",
    "continued": b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 429 X\r\nContent-Length: 16\r\n\r\n" + BODY,
    "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
}  # fmt: skip


@given(st.sampled_from(sorted(WAYS)), st.lists(st.integers(1, 90), max_size=12))
def test_an_answer_is_read_however_it_is_cut(way, cuts):
    whole, answer = WAYS[way], Answer()
    ends = sorted({min(cut, len(whole)) for cut in cuts} | {len(whole)})
    pieces = [whole[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    complete = [answer.feed(memoryview(piece)) for piece in pieces]
    assert complete == [False] * (len(pieces) - 1) + [True]
    assert answer.status == ("204" if way == "nothing" else "429")
    assert not answer.close
    assert way in ("chunked", "nothing") or answer.body == BODY


@pytest.mark.parametrize(
    ("head", "close"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", False),
    ],
)
def test_whether_a_connection_ends_with_its_answer(head, close):
    answer = Answer()
    assert answer.feed(memoryview(head + b"\r\n\r\n"))
    assert answer.close is close


def test_an_answer_without_length_ends_with_the_connection():
    answer = Answer()
    assert not answer.feed(memoryview(b"HTTP/1.1 200 OK\r\n\r\nmuch"))
    assert answer.end()
    assert not Answer().end()


@pytest.mark.parametrize(
    "said",
    [
        b"220 mail\r\n\r\n",
        b"SSH-2.0",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_no_answer_is_refused(said):
    with pytest.raises(Malformed):
        Answer().feed(memoryview(said))
