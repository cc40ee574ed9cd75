"""What is written down of the traffic, and what takes it: the load client, replay, a model."""

import stat

import numpy as np
import pytest

from deeprecsys.core import UserError
from deeprecsys.protocol.recorded import read_rows
from deeprecsys.serving.recent import Kept
from deeprecsys.serving.record import Recorder
from deeprecsys.workload.traces import read_trace
from serving_fixture import Client, serving
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine


def quiet(*said, **about):
    raise AssertionError((said, about))


def kept(number, rows=50, model="m"):
    inputs = {"x": np.full((rows, 2), number, np.float32)}
    return Kept(model, float(number), inputs)


def numbers(path):
    return [int(row["x"][0][0]) for row in read_rows(str(path))]


def test_a_recording_stays_within_its_bound_and_evenly_spread(tmp_path):
    path = tmp_path / "queries.jsonl"
    recorder = Recorder(str(path), None, 20_000, several=False, log=quiet)
    queries = recorder._queries("m")
    for number in range(1, 2000):
        queries.add(kept(number))
    recorder.close()
    assert path.stat().st_size <= 20_000
    found = numbers(path)
    gaps = set(np.diff(found).tolist())
    assert len(found) >= 10
    assert len(gaps) == 1, f"from {found[0]} to {found[-1]}, not evenly: {gaps}"
    assert found[-1] > 1900
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds what clients sent"


def test_each_of_several_models_has_a_file(tmp_path):
    recorder = Recorder(str(tmp_path / "q.jsonl"), None, 1 << 20, several=True, log=quiet)
    recorder.heard(kept(1, model="a"))
    recorder.heard(kept(2, model="../b"))
    recorder.close()
    assert numbers(tmp_path / "q-a.jsonl") == [1]
    assert numbers(tmp_path / "q-.._b.jsonl") == [2]


def test_a_schedule_is_sorted_whatever_the_order_of_the_answers(tmp_path):
    path = tmp_path / "schedule.csv"
    recorder = Recorder(None, str(path), 1, several=False, log=quiet)
    rng = np.random.default_rng(0)
    at_s, items = 100 + np.sort(rng.random(500)) * 3, rng.integers(1, 900, 500)
    order = rng.permutation(500)
    for part in np.array_split(order, 7):
        recorder.answered("m", at_s[part], items[part])
    recorder.close()
    trace = read_trace(str(path))
    np.testing.assert_allclose(trace.arrival_s, at_s - at_s[0], atol=1e-6)
    np.testing.assert_array_equal(trace.size, items)
    assert set(trace.model) == {"m"}


def test_a_server_writes_down_what_it_answers(tmp_path):
    queries, schedule = tmp_path / "q.jsonl", tmp_path / "s.csv"
    recorder = Recorder(str(queries), str(schedule), 1 << 20, several=False, log=quiet)
    rng = np.random.default_rng(0)
    with serving(StubModel(), StubRuntime(), recorder=recorder) as server:
        server.plane.recent.every_s = 0.0
        with Client(server) as client:
            asked = [StubModel().example(n, rng) for n in (3, 5, 8)]
            for query in asked:
                assert client.infer(query)[0] == 200
    assert read_trace(str(schedule)).size.tolist() == [3, 5, 8]
    found = list(read_rows(str(queries)))
    assert len(found) == 3
    for row, query in zip(found, asked, strict=True):
        for name, column in query.items():
            np.testing.assert_allclose(np.array(row[name]), column)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_served(tmp_path):
    with pytest.raises(UserError, match="cannot write the recording"):
        Recorder(str(tmp_path / "no" / "q.jsonl"), None, 1, several=False, log=quiet)
