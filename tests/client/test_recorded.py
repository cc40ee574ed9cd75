"""Recorded queries are sent as they were recorded, in whatever form they lie."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deeprecsys.client.client import Client
from deeprecsys.client.recorded import read_queries
from deeprecsys.client.server import Tensor
from deeprecsys.core import Schedule, Status, UserError
from deeprecsys.protocol import tensors
from stub_server import GrpcStub, HttpStub

pytestmark = pytest.mark.engine

INPUTS = (Tensor("dense", "FP32", (-1, 4)), Tensor("ids", "INT32", (-1, 3)))
SIZES = [2, 1, 3]


def queries():
    return [
        {
            "dense": (np.arange(4 * n).reshape(n, 4) + n).astype(np.float32),
            "ids": np.arange(3 * n, dtype=np.int32).reshape(n, 3) + n,
        }
        for n in SIZES
    ]


def lists(query):
    return {name: array.tolist() for name, array in query.items()}


def flat(query):
    return {name: array.ravel().tolist() for name, array in query.items()}


def body(query):
    return {
        "id": "x",
        "inputs": [
            {"name": name, "datatype": tensors.datatype_of(array), "shape": list(array.shape),
             "data": array.ravel().tolist()}
            for name, array in query.items()
        ],
    }  # fmt: skip


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, form):
    said = queries()
    match form:
        case "lists.jsonl":
            path.write_text(json_lines([{**lists(one), "user": "u"} for one in said]))
        case "flat.jsonl":
            path.write_text(json_lines(map(flat, said)) + "\n")
        case "bodies.jsonl":
            path.write_text(json_lines(map(body, said)))
        case "zipped.jsonl.gz":
            path.write_bytes(gzip.compress(json_lines(map(lists, said)).encode()))
        case "lists.parquet":
            pq.write_table(pa.Table.from_pylist(list(map(lists, said))), path)
        case "flat.parquet":
            pq.write_table(pa.Table.from_pylist(list(map(flat, said))), path)
        case "candidates.npz":
            whole = {name: np.concatenate([one[name] for one in said]) for name in said[0]}
            np.savez(path, size=np.array(SIZES), **whole)
    return str(path)


FORMS = ["lists.jsonl", "flat.jsonl", "bodies.jsonl", "zipped.jsonl.gz", "lists.parquet",
         "flat.parquet", "candidates.npz"]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(tmp_path, form):
    found = read_queries(write(tmp_path / form, form), INPUTS)
    assert found.size.tolist() == SIZES
    assert found.inputs == INPUTS
    for i, query in enumerate(queries()):
        assert found.layout(i, 0).shapes == tuple(array.shape for array in query.values())
        assert [bytes(view) for view in found.window(i, 0)] == [a.tobytes() for a in query.values()]


@pytest.mark.parametrize("form", ["bodies.jsonl", "candidates.npz"])
def test_a_file_that_says_its_types_needs_no_metadata(tmp_path, form):
    assert read_queries(write(tmp_path / form, form)).inputs == INPUTS


def test_arrays_without_sizes_hold_a_query_a_row(tmp_path):
    ids = np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    np.savez(tmp_path / "q.npz", ids=ids, dense=np.ones((4, 2, 4), np.float32))
    found = read_queries(str(tmp_path / "q.npz"), INPUTS)
    assert found.size.tolist() == [2] * 4
    assert bytes(found.window(3, 0)[1]) == ids[3].tobytes()


def test_what_belongs_to_the_user_has_one_row_and_ragged_values_count_for_nothing(tmp_path):
    row = {"user": [[1.0, 2.0]], "ids_values": [4, 5, 6, 7, 8], "ids_lengths": [2, 0, 3]}
    (tmp_path / "q.jsonl").write_text(json_lines([row]))
    inputs = (
        Tensor("user", "FP32", (-1, 2)), Tensor("ids_values", "INT64", (-1,)),
        Tensor("ids_lengths", "INT32", (-1,)),
    )  # fmt: skip
    found = read_queries(str(tmp_path / "q.jsonl"), inputs, ("ids_values",))
    assert found.size.tolist() == [3]
    assert found.layout(0, 3).shapes == ((1, 2), (5,), (3,))
    row["ids_lengths"] = [0, 2, 2, 5]  # as offsets
    (tmp_path / "q.jsonl").write_text(json_lines([row]))
    found = read_queries(str(tmp_path / "q.jsonl"), inputs, ("ids_values",), ("ids_lengths",))
    assert found.size.tolist() == [3]


def test_texts_of_any_length_are_sent(tmp_path):
    (tmp_path / "q.jsonl").write_text(json_lines([{"words": ["a", "längst", ""]}]))
    found = read_queries(str(tmp_path / "q.jsonl"))
    assert found.inputs == (Tensor("words", "BYTES", (-1,)),)
    back = tensors.from_bytes("words", "BYTES", (3,), found.window(0, 0)[0])
    assert [word.decode() for word in back] == ["a", "längst", ""]


WRONG = {
    "q.csv": ("", "are .npz, .parquet or .jsonl"),
    "none.jsonl": (None, "no file"),
    "empty.jsonl": ("\n", "is empty"),
    "cut.jsonl": ('{"ids": [', "row 1: "),
    "list.jsonl": ("[1]", "row 1: write an object of inputs a line"),
    "other.jsonl": ('{"x": [1]}', "row 1 has no input dense; it has x"),
    "null.jsonl": (json_lines([flat(queries()[0]), {"dense": None, "ids": [1]}]), "row 2 has no"),
    "shape.jsonl": ('{"dense": [1, 2, 3, 4, 5], "ids": [1, 2, 3]}', r"dense has shape \[5\]"),
    "uneven.jsonl": ('{"dense": [[1, 2, 3, 4], [5]], "ids": [1, 2, 3]}', "different lengths"),
    "float.jsonl": ('{"dense": [1, 2, 3, 4], "ids": [1, 2.5, 3]}', "2.5 does not fit input ids"),
    "large.jsonl": ('{"dense": [1, 2, 3, 4], "ids": [1, 2, 3000000000]}', "3000000000 does not"),
    "words.jsonl": ('{"dense": [1, 2, 3, 4], "ids": ["a", "b", "c"]}', "ids is INT32, not"),
    "body.jsonl": ('{"inputs": [{"name": "ids", "datatype": "INT32", "shape": [3], "data": [1]}]}',
                   "row 1: input ids"),
    "text.parquet": ("x", "cannot read"),
    "text.jsonl.gz": ("x", "gzip"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_query_is_told_by_its_row(tmp_path, name):
    text, says = WRONG[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_queries(str(tmp_path / name), INPUTS)
    assert "\n" not in str(error.value)


def test_rows_that_do_not_match_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.ones((4, 3)), dense=np.ones((5, 4)))
    with pytest.raises(UserError, match="add an array size"):
        read_queries(str(tmp_path / "a.npz"), INPUTS)
    np.savez(tmp_path / "b.npz", ids=np.ones((4, 3)), size=np.array([2, 3]))
    with pytest.raises(UserError, match="ids has 4 rows, but size says 2 queries of 5 candidates"):
        read_queries(str(tmp_path / "b.npz"), INPUTS)


@pytest.mark.parametrize("stub", [HttpStub, GrpcStub])
@pytest.mark.parametrize("binary", [True, False])
def test_recorded_queries_are_sent_in_their_order_again_and_again(tmp_path, stub, binary):
    path = write(tmp_path / "bodies.jsonl", "bodies.jsonl")
    plan = Schedule(np.arange(7) * 0.02, np.full(7, 99), "uniform")
    with (
        stub(inputs=[]) as server,
        Client(server.url, "m", queries=path, processes=2, binary=binary) as client,
    ):
        records = client.run(plan)
    assert {Status(value).name for value in records.status} == {"OK"}
    assert records.size.tolist() == [2, 1, 3, 2, 1, 3, 2]
    for i, asked in enumerate(server.asked):
        want = queries()[i % 3]["ids"]
        assert np.ravel(asked.inputs["ids"]).tolist() == want.ravel().tolist()
