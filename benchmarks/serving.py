"""What serving costs: `make bench-serving`, or `python benchmarks/serving.py --only overhead`.

Everything in turns with what it is compared to, the client on the same cores as the server. Rows
are shown as they come and kept in docs/serving.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import deeprecsys as drs
from deeprecsys.core import SLA, Policy
from deeprecsys.engine import Engine
from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from deeprecsys.runtimes.stub import NoOp
from rows import Row, asked, measure
from served import Bare, Host, StubModel, bare, served
from turns import WORKLOAD, compare, said

RESULTS = Path(__file__).parents[1] / "docs" / "serving.md"
_ROUNDS = 10


def overhead() -> Iterator[Row]:
    """One client, 500 candidates, a runtime that computes nothing."""
    for ids, each in ((26, 200), (1280, 40)):
        seconds, cpu_s = _latencies(ids, each)
        p50 = {name: float(np.median(taken)) for name, taken in seconds.items()}
        body = f"{500 * ids * 4 / 1e6:.3g} MB"
        listed = ", ".join(f"{name} {s * 1e3:.3f}" for name, s in p50.items())
        if ids == 26:
            over = p50["http"] - p50["engine"]
            yield Row(
                f"HTTP p50 over `Engine.submit`, {body} body",
                f"{over * 1e3:.3f} ms (p50, ms: {listed}; server CPU a request, ms: "
                + ", ".join(f"{name} {s * 1e3:.3f}" for name, s in cpu_s.items())
                + ")",
                "at most 0.12 ms",
                over <= 0.12e-3,
            )
        else:
            outside = p50["http"] - p50["engine"]
            for name, what in (("uvicorn", "bare ASGI echo on uvicorn"), ("echo", "barest echo")):
                ratio = outside / p50[name]
                yield Row(
                    f"{body} body: time in the server outside the engine / {what}",
                    f"{ratio:.2f} (p50, ms: {listed})",
                    "at most 1.2",
                    ratio <= 1.2,
                )


def _latencies(ids: int, each: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every request, by server, in turns."""
    model, policy = StubModel(ids), Policy(512)
    inputs = model.example(500, np.random.default_rng(0))
    head, data = wire.request(inputs)
    length = len(head) + sum(map(len, data))
    top = (
        b"POST /v2/models/stub/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        b"Inference-Header-Content-Length: %d\r\n\r\n" % (length, len(head))
    )
    with ExitStack() as stack:
        hosts: dict[str, Host] = {
            "http": stack.enter_context(bare("stub", str(ids))),
            "echo": stack.enter_context(bare("echo")),
            "uvicorn": stack.enter_context(bare("uvicorn")),
        }
        engine = stack.enter_context(Engine(model, 2, NoOp(), largest=8))
        time.sleep(4.0)
        clients = {k: stack.enter_context(Bare(host.http_port)) for k, host in hosts.items()}

        def ask(name: str) -> None:
            if name == "engine":
                engine.submit(inputs, policy).result()
            else:
                assert clients[name].ask(top + head, *data)[0] == 200

        seconds: dict[str, list[float]] = {name: [] for name in (*hosts, "engine")}
        cpu_s = dict.fromkeys(hosts, 0.0)
        for turn in range(_ROUNDS + 1):
            for name, taken in seconds.items():
                before = hosts[name].cpu_s() if name in hosts else 0.0
                for _ in range(each):
                    began = time.perf_counter()
                    ask(name)
                    if turn:  # the first turn warms up
                        taken.append(time.perf_counter() - began)
                if turn and name in hosts:
                    cpu_s[name] += (hosts[name].cpu_s() - before) / (_ROUNDS * each)
        return seconds, cpu_s


def cpu() -> Iterator[Row]:
    """CPU seconds of the serving process a query, over HTTP / in-process, same queries."""
    for name, batch, rate, once in (("wnd", 256, 60.0, False), ("din", 256, 12.0, True)):
        model = load_model(name, query_inputs=once)
        flags = ["--query-inputs"] if once else []
        with ExitStack() as stack:
            host = stack.enter_context(_server(name, batch, *flags))
            engine = stack.enter_context(drs.Engine(model))
            client = stack.enter_context(_client(host, name))
            process = psutil.Process()
            spent: dict[str, list[float]] = {"http": [], "engine": []}
            for seed in range(_ROUNDS):
                workload = WORKLOAD.reseed(seed)
                schedule = workload.schedule(rate_qps=rate, duration_s=8.0)
                for system in ("http", "engine"):
                    if system == "http":
                        before = host.cpu_s()
                        records = client.run(schedule, Policy(batch))
                        after = host.cpu_s()
                    else:
                        before = _cpu_s(process)
                        records = engine.run(schedule, Policy(batch))
                        after = _cpu_s(process)
                    assert (records.status == 0).all()
                    spent[system].append((after - before) / len(schedule))
        ratios = np.array(spent["http"][1:]) / np.array(spent["engine"][1:])
        ratio = float(np.median(ratios))
        user = ", query-scoped" if once else ""
        yield Row(
            f"server CPU a query, HTTP / in-process, {name}{user}",
            f"{ratio:.3f} [{ratios.min():.3f} to {ratios.max():.3f}] "
            f"({np.median(spent['http']) * 1e3:.2f} and {np.median(spent['engine']) * 1e3:.2f} ms)",
            "at most 1.15",
            ratio <= 1.15,
        )


def capacity() -> Iterator[Row]:
    """Capacity over HTTP / in-process, the client on the same cores."""
    wanted = (
        ("dlrm-rmc1", None, 256, 0.9),
        ("dlrm-rmc3", None, 256, 0.78),
        ("ncf", 0.025, 512, 0.82),
    )
    for name, target_s, batch, least in wanted:
        model = load_model(name)
        sla = model.target if target_s is None else SLA(target_s)
        with ExitStack() as stack:
            host = stack.enter_context(_server(name, batch))
            systems: dict[str, Any] = {
                "http": stack.enter_context(_client(host, name)),
                "in-process": stack.enter_context(drs.Engine(model)),
            }
            rates, ratios = compare(systems, sla, batch, search_s=30.0, round_s=4.0, most_s=70.0)
        ratio = ratios["in-process"]
        yield Row(
            f"capacity, HTTP / in-process, {name} at {sla}",
            f"{said(ratio)} ({rates['http']:,.0f} and {rates['in-process']:,.0f} queries/s)",
            f"{least}",
            ratio is not None and ratio.ratio >= least,
        )
        del model


def brief() -> Iterator[Row]:
    """`ncf` at its own 5 ms, over HTTP, at half of what it holds in this process."""
    model, batch = load_model("ncf"), 512
    with ExitStack() as stack:
        host = stack.enter_context(_server("ncf", batch))
        engine = stack.enter_context(drs.Engine(model))
        client = stack.enter_context(_client(host, "ncf"))
        alone = drs.find_capacity(engine, WORKLOAD, model.target, Policy(batch), budget_s=90)
        half = alone.rate_qps / 2
        held, p95 = [], []
        for seed in range(5):
            schedule = WORKLOAD.reseed(seed).schedule(rate_qps=half, duration_s=10)
            found = drs.summarize(client.run(schedule, Policy(batch)), model.target)
            held.append(found.meets_sla)
            p95.append(found.p95_s * 1e3)
    times = ", ".join(f"{p:.2f}" for p in p95)
    yield Row(
        "ncf at 5 ms over HTTP, half of the in-process capacity",
        f"met in {held.count(True)} of {len(held)} runs at {half:,.0f} queries/s "
        f"(p95, ms: {times}; in-process capacity {alone.rate_qps:,.0f})",
        "holds",
        all(held),
    )


def _server(name: str, batch: int, *flags: str) -> Any:
    """Without deadlines: a capacity counts every query. Inputs as in the paper, unless said."""
    once = flags or ("--no-query-inputs",)
    return served(name, "--batch-size", str(batch), "--deadline-ms", "0", *once)


def _client(host: Host, name: str) -> Any:
    from deeprecsys.client.client import Client

    return Client(f"http://127.0.0.1:{host.http_port}", name)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


PARTS: tuple[Callable[[], Iterator[Row]], ...] = (overhead, cpu, capacity, brief)


def main() -> None:
    only = asked(PARTS, __doc__).parse_args().only
    measure({part.__name__: part for part in PARTS}, only, RESULTS, __file__)


if __name__ == "__main__":
    main()
