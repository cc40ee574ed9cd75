"""The load client against servers that misbehave on demand: what it sends, and what it records."""

import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import deeprecsys
from deeprecsys.client import client as client_module
from deeprecsys.client import pools
from deeprecsys.client.client import Client
from deeprecsys.client.server import Address
from deeprecsys.core import SLA, Policy, Schedule, Status, UserError
from deeprecsys.tuning import Effort, Observer, find_capacity
from deeprecsys.workload import Workload
from stub_server import Act, GrpcStub, HttpStub

pytestmark = pytest.mark.engine

STUBS = {"http": HttpStub, "grpc": GrpcStub}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    monkeypatch.setattr(pools, "_POOL_BYTES", 1 << 18)  # large ones take a while to draw


@pytest.fixture(params=sorted(STUBS))
def either(request):
    return STUBS[request.param]


def schedule(n, gap_s=0.002, size=5):
    sizes = size if isinstance(size, list) else [size] * n
    return Schedule(np.arange(n) * gap_s, np.array(sizes), "uniform")


def run(stub, n=20, *, plan=None, watch=None, **options):
    with Client(stub.url, "m", **options) as client:
        return client.run(
            schedule(n) if plan is None else plan, Policy(), watch=watch
        ), client.last_run()


def statuses(records):
    return [Status(value).name for value in records.status]


def test_it_is_a_name_of_the_facade():
    assert deeprecsys.Client is Client


def test_every_query_is_sent_once_and_answered(either):
    with either() as stub:
        records, told = run(stub, 50)
    assert set(statuses(records)) == {"OK"}
    assert len(stub.asked) == 50
    assert (records.latency_s > 0).all()
    assert (records.submit_s >= records.arrival_s).all()
    assert (records.finish_s > records.submit_s).all()
    assert told["by_status"] == {"200" if stub.url.startswith("http") else "OK": 50}
    assert told["unanswered"] == 0
    assert told["cpu_s"] > 0
    assert told["bytes_sent"] > 50 * 5 * 28


def test_bare_queries_are_their_tensors_alone():
    heard = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            heard.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    values = {
        "dense": {"datatype": "FP32", "shape": [4]},
        "ids": {"datatype": "INT32", "shape": [3], "rows": 50},
    }
    sizes = [1, 7, 900]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/score"
        with Client(url, "", bare=True, values=values) as client:
            records = client.run(schedule(3, 0.02, sizes))
        server.shutdown()
    assert set(statuses(records)) == {"OK"}
    assert [path for path, _ in heard] == ["/score"] * 3
    assert [len(body) for _, body in heard] == [28 * size for size in sizes]
    ids = np.frombuffer(heard[2][1], np.int32, offset=16 * 900)
    assert ids.min() >= 0
    assert ids.max() < 50


def test_bare_queries_need_http():
    with pytest.raises(UserError, match="http://"):
        Client("grpc://127.0.0.1:8001", "", bare=True)


def test_what_is_sent_is_what_the_schedule_asks_for(either):
    sizes = [1, 7, 3, 0, 900]
    with either() as stub:
        records, _ = run(stub, plan=schedule(5, 0.02, sizes), timeout_s=0.25, key="word")
    assert set(statuses(records)) == {"OK"}
    assert [len(asked.inputs["ids"]) for asked in stub.asked] == sizes
    for asked in stub.asked:
        assert asked.inputs["dense"].dtype == np.float32
        assert asked.inputs["dense"].shape[1:] == (4,)
        assert ((asked.inputs["ids"] >= 0) & (asked.inputs["ids"] < 50)).all()
        assert asked.head["parameters"]["timeout"] == 250_000
        assert asked.fields["authorization"].lower() == "bearer word"
    last = stub.asked[-1].inputs
    assert len(np.unique(last["ids"])) == 50
    assert abs(last["dense"].mean()) < 0.2
    assert 0.8 < last["dense"].std() < 1.2


def test_the_same_seed_sends_the_same_from_any_number_of_processes():
    def sent(processes, seed):
        with HttpStub() as stub:
            run(stub, plan=schedule(6, 0.03, [3, 1, 4, 1, 5, 9]), processes=processes, seed=seed)
        return [asked.inputs["ids"].tolist() for asked in stub.asked]

    assert sent(1, 3) == sent(2, 3) != sent(1, 4)


def test_json_says_the_same_as_bytes():
    def sent(binary):
        with HttpStub() as stub:
            records, _ = run(stub, 3, binary=binary)
        assert set(statuses(records)) == {"OK"}
        return [np.ravel(asked.inputs["ids"]).tolist() for asked in stub.asked]

    assert sent(True) == sent(False)


def test_an_input_of_the_query_is_sent_with_one_row(either):
    with either(parameters={"scope.dense": "query", "rows.ids": "9"}) as stub:
        run(stub, plan=schedule(3, 0.01, [6, 0, 2]))
    assert [asked.inputs["dense"].shape for asked in stub.asked] == [(1, 4)] * 3
    assert [asked.inputs["ids"].shape for asked in stub.asked] == [(6, 3), (0, 3), (2, 3)]


def test_the_answers_status_is_the_records(either):
    answers = [200, 429, 504, 499, 500]
    with either(act=lambda n: Act(answers[n % 5])) as stub:
        records, told = run(stub, plan=schedule(10, 0.02))
    assert statuses(records) == ["OK", "REJECTED", "EXPIRED", "CANCELLED", "FAILED"] * 2
    assert (np.isnan(records.finish_s) == (records.status != Status.OK)).all()
    assert list(told["by_status"].values()) == [2] * 5
    assert list(told["examples"].values()) == [f"because of {status}" for status in answers[1:]]
    assert told["unanswered"] == 0


def test_every_way_to_end_an_answer_is_understood():
    ways = ["plain", "chunked", "close", "pieces", "bare"]
    with HttpStub(act=lambda n: Act(how=ways[n % 5])) as stub:
        records, told = run(stub, 25, connections=2)
    assert set(statuses(records)) == {"OK"}
    assert told["resent"] == 0
    assert stub.connections > 10  # an end of every connection that was said to end


@pytest.mark.parametrize(
    ("how", "reason"), [("half", "closed"), ("junk", "no HTTP"), ("cut", "closed")]
)
def test_an_answer_that_is_none_has_failed_and_the_others_go_on(how, reason):
    with HttpStub(act=lambda n: Act(how=how if n == 3 else "plain")) as stub:
        records, told = run(stub, plan=schedule(8, 0.02), connections=8)
    if how == "cut":  # before any byte of the answer: sent once more
        assert set(statuses(records)) == {"OK"}
        assert told["resent"] == 1
        return
    assert statuses(records) == ["OK"] * 3 + ["FAILED"] + ["OK"] * 4
    assert told["unanswered"] == 1
    assert reason in told["examples"]["unanswered"]


def test_what_is_cut_off_again_and_again_has_failed():
    with HttpStub(act=lambda n: Act(how="cut" if n else "plain")) as stub:
        records, told = run(stub, plan=schedule(6, 0.02))
    assert statuses(records) == ["OK"] + ["FAILED"] * 5
    assert told["unanswered"] == 5


def test_latency_counts_from_the_scheduled_time_behind_a_stalled_answer():
    with HttpStub(act=lambda n: Act(delay_s=0.3 if n == 0 else 0)) as stub:
        records, _ = run(stub, plan=schedule(5, 0.01), connections=1)
    # The others wait in the client for the only connection, and that is their latency.
    assert (records.latency_s > 0.3 - 0.05).all()
    assert (records.lag_s[1:] > 0.3 - 0.05).all()
    assert (np.diff(records.finish_s) > 0).all()


def test_the_loop_is_open(either):
    with either(act=lambda n: Act(delay_s=0.3)) as stub:
        records, _ = run(stub, plan=schedule(8, 0.01))
    # One after the other, they would take eight times as long.
    assert records.finish_s.max() < 8 * 0.3
    assert (np.diff(records.submit_s) < 0.3).all()


def test_a_query_without_an_answer_fails_after_the_clients_patience(either):
    with either(act=lambda n: Act(delay_s=2 if n == 1 else 0)) as stub:
        records, told = run(stub, plan=schedule(4, 0.02), patience_s=0.4)
    assert statuses(records) == ["OK", "FAILED", "OK", "OK"]
    assert told["unanswered"] == 1


def test_a_watch_sees_the_run_so_far_and_may_stop_it(either):
    seen = []

    def watch(records, now_s):
        seen.append((len(records), np.isfinite(records.latency_s).sum(), now_s))
        assert (records.arrival_s <= now_s).all()
        return now_s > 0.35

    with either(act=lambda n: Act(delay_s=30 if n > 25 and either is HttpStub else 0)) as stub:
        records, told = run(stub, plan=schedule(2000, 0.01), watch=watch)
    assert 20 < len(records) < 200
    assert seen[0][0] < seen[-1][0]
    assert seen[-1][1] > 0
    assert {"OK", "CANCELLED"} >= set(statuses(records))
    assert (statuses(records)[-1] == "CANCELLED") or either is GrpcStub
    assert told["unanswered"] == 0


def test_an_error_in_a_watch_ends_the_run():
    def watch(records, now_s):
        raise RuntimeError("in the watch")

    with HttpStub() as stub, Client(stub.url, "m") as client:
        with pytest.raises(RuntimeError, match="in the watch"):
            client.run(schedule(2000), Policy(), watch=watch)
        assert set(statuses(client.run(schedule(10)))) == {"OK"}


def test_what_a_run_needs_can_be_drawn_before_it(monkeypatch):
    with HttpStub() as stub, Client(stub.url, "m") as client:
        client.prepare(700, "uniform")
        told = []
        monkeypatch.setattr(client_module, "pool_items", lambda *_: told.append("drawn again"))
        client.run(schedule(3, size=700))
        assert told == []
        assert client.last_run()["by_status"] == {"200": 3}


def test_a_process_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr(client_module.sys, "executable", "/bin/false")
    with HttpStub() as stub, pytest.raises(RuntimeError, match="did not start"):
        Client(stub.url, "m").__enter__()


def test_processes_are_kept_and_share_the_rows():
    with HttpStub() as stub, Client(stub.url, "m", processes=2) as client:
        first = client.run(schedule(10))
        pids = [child.pid for child in client._children]
        second = client.run(schedule(31))
        assert [child.pid for child in client._children] == pids
    assert set(statuses(first)) == set(statuses(second)) == {"OK"}
    assert set(second.worker.tolist()) == {0, 1}
    assert len(stub.asked) == 41


def test_a_process_that_dies_fails_its_rows_and_the_next_run_has_another():
    with HttpStub() as stub, Client(stub.url, "m", processes=2) as client:

        def watch(records, now_s):
            if now_s > 0.2 and client._children[0].alive():
                os.kill(client._children[0].pid, signal.SIGKILL)
            return False

        records = client.run(schedule(100, 0.006), watch=watch)
        told = client.last_run()
        again = client.run(schedule(10))
    mine, other = records.status[0::2], records.status[1::2]
    assert mine[0] == Status.OK
    assert mine[-1] == Status.FAILED
    assert (other == Status.OK).all()
    assert told["unanswered"] == (mine == Status.FAILED).sum()
    assert "signal 9" in told["examples"]["unanswered"]
    assert set(statuses(again)) == {"OK"}


def test_a_server_that_goes_away_fails_the_queries(either):
    with either() as stub:
        client = Client(stub.url, "m", patience_s=5)
        client.__enter__()
        client.run(schedule(5))
    records = client.run(schedule(5))
    told = client.last_run()
    client.close()
    assert set(statuses(records)) == {"FAILED"}
    assert told["unanswered"] == 5
    assert "refused" in told["examples"]["unanswered"]


def test_an_empty_schedule_has_empty_records():
    with HttpStub() as stub:
        records, told = run(stub, plan=schedule(0))
    assert len(records) == told["unanswered"] == 0


def test_a_replayed_trace_is_sent_size_by_size(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,size\n0,4\n0.02,17\n0.04,1\n")
    plan = Workload(arrivals=f"replay:{trace}").schedule()
    with HttpStub() as stub:
        records, _ = run(stub, plan=plan)
    assert [len(asked.inputs["ids"]) for asked in stub.asked] == [4, 17, 1]
    assert records.size.tolist() == [4, 17, 1]


def test_large_bodies_arrive_whole():
    wide = [{"name": "x", "datatype": "FP64", "shape": [-1, 2000]}]
    with HttpStub(inputs=wide) as stub:
        records, told = run(stub, plan=schedule(4, 0.01, 300))
    assert set(statuses(records)) == {"OK"}
    assert told["bytes_sent"] > 4 * 300 * 16_000
    assert all(np.isfinite(asked.inputs["x"]).all() for asked in stub.asked)


def test_a_capacity_is_found():
    gate = threading.Lock()
    free_s = [0.0]

    def act(n):  # one worker that takes 4 ms a query
        with gate:
            now = time.monotonic()
            free_s[0] = max(free_s[0], now) + 0.004
            return Act(delay_s=free_s[0] - now)

    effort = Effort(tolerance=0.5, queries=60, least_queries=40, least_s=0.3, most_s=0.5,
                    confirm=False, second_tries=False)  # fmt: skip
    with HttpStub(act=act) as stub, Client(stub.url, "m") as client:
        found = find_capacity(
            client, Workload(arrivals="constant"), SLA(0.1), effort=effort, budget_s=3
        )
    assert 0 < found.rate_qps < 1000


def test_a_search_that_is_stopped_keeps_its_runs():
    runs = []
    observer = Observer(stop=lambda: len(runs) > 0, on_run=lambda policy, run: runs.append(run))
    with HttpStub() as stub, Client(stub.url, "m") as client:
        found = find_capacity(client, Workload(), SLA(0.1), budget_s=60, observer=observer)
    assert list(found.runs) == runs
    assert len(runs) == 1
    assert not found.decided


def test_facts_are_what_the_server_says(either):
    with either() as stub, Client(stub.url, "m") as client:
        facts = client.facts()
        assert client.assumptions == ["dense: standard normal"]
        assert client.disturbance() == 0
    assert facts.workers == 2
    assert (facts.detail["server"], facts.detail["version"]) == ("stub", "0.1")
    assert facts.detail["platform"] == "stub"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000", "write http://HOST:PORT"),
        ("http://host:port", "cannot read the URL"),
        ("ftp://host:1", "write http://HOST:PORT"),
        ("https://127.0.0.1:{free}", "start the server"),
        ("grpc://host:1/path", "no path"),
        ("http://me:secret@host:1", "Authorization"),
        ("http://127.0.0.1:{free}", "start the server"),
        ("grpc://127.0.0.1:{free}", "start the server"),
    ],
)
def test_a_wrong_url_is_told_in_one_line(url, says):
    with pytest.raises(UserError, match=says) as told, Client(url.format(free=free_port()), "m"):
        pass
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("http://a", "a"),
        ("https://a:443/x", "a"),
        ("http://a:443", "a:443"),
        ("https://[::1]", "[::1]"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_usual_port_is_not_named(url, field):
    assert Address.parse(url).host_field == field


def test_an_unknown_model_or_one_that_is_not_ready_is_told(either):
    with either() as stub, pytest.raises(UserError, match=r"no model 'other'.*--model"):
        Client(stub.url, "other").__enter__()
    with either(ready=503) as stub, pytest.raises(UserError, match="not ready"):
        Client(stub.url, "m").__enter__()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"processes": 0}, "processes must"),
        ({"connections": 0}, "connections must"),
        ({"timeout_s": -1}, "timeout_s must"),
        ({"key": "a\nb"}, "key is printable"),
    ],
)
def test_wrong_options_are_told(options, says):
    with pytest.raises(UserError, match=says):
        Client("http://localhost:1", "m", **options)
