"""New versions under load, many of them, and models beside each other: `make bench-swaps`.

`python benchmarks/swaps.py --only swaps` (or reloads, beside). Real servers in processes of their
own, the load from this one, on the same cores. Rows are shown as they come and kept in
docs/operating-results.md. Two versions of full-size dlrm-rmc1 take 8 GB of disk and memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton

import deeprecsys as drs
from deeprecsys.artifacts.versions import publish
from deeprecsys.client.client import Client
from deeprecsys.core import SLA, Policy, Records, Status
from deeprecsys.models import load_model
from own_models import exported
from rows import Row, asked, measure
from served import Host, served
from turns import WORKLOAD

RESULTS = Path(__file__).parents[1] / "docs" / "operating-results.md"
TARGET = SLA(0.100)
_SHARE, _QUIET_S = 0.7, 6.0
_CHECKED, _EVERY_S = 64, 0.05  # candidates of the query whose scores are held to the versions'
_SMALL = 0.002
_KEY = "of-the-benchmark-alone"


@dataclass(frozen=True)
class Window:
    """Of wall time, in seconds."""

    what: str
    began_s: float
    ended_s: float


def swaps(options: argparse.Namespace) -> Iterator[Row]:
    """Versions 1 and 2 take turns, each loaded from disk anew, at 70 % of the capacity."""
    with tempfile.TemporaryDirectory(dir=options.disk) as folder, ExitStack() as stack:
        ranker = Path(folder) / "ranker"
        for seed in (0, 1):
            made = Path(folder) / "made"
            made.mkdir()
            exported(load_model("dlrm-rmc1", scale=options.scale, seed=seed), made)
            gc.collect()
            publish(made, ranker)
            for file in made.iterdir():
                file.unlink()
            made.rmdir()
        host = stack.enter_context(_server(ranker, keep=0))
        client = stack.enter_context(_client(host, "ranker"))
        capacity = drs.find_capacity(client, WORKLOAD, TARGET, Policy(256), budget_s=60).rate_qps
        checker = stack.enter_context(Checked(host, "ranker"))
        windows, records, began_s = _swapped(host, client, options.swaps, _SHARE * capacity)
    arrival_s = began_s + records.arrival_s
    bad = int((records.status != Status.OK).sum())
    yield Row(
        f"{options.swaps} swaps of dlrm-rmc1 (scale {options.scale:g}) at {_SHARE:.0%} of its "
        f"capacity of {capacity:,.0f} queries/s: failed; of a wrong version",
        f"{bad} of {len(records):,}; {checker.wrong} of {checker.asked:,} checked",
        "0; 0",
        bad == 0 and checker.wrong == 0,
    )
    quiet = _latencies(records, arrival_s, [w for w in windows if w.what == "quiet"])
    for what in ("loading", "switching", "freeing"):
        own = [w for w in windows if w.what == what]
        taken = _latencies(records, arrival_s, own)
        lasted = np.median([w.ended_s - w.began_s for w in own])
        ratios = [_percentile(taken, q) / _percentile(quiet, q) for q in (95, 99)]
        times = [_percentile(quiet, q) * 1e3 for q in (95, 99)]
        yield Row(
            f"p95 and p99 while {what} (median {lasted:.1f} s) / in quiet windows between",
            f"{ratios[0]:.3f}; {ratios[1]:.3f} (quiet {times[0]:.1f} and {times[1]:.1f} ms; "
            f"{len(taken):,} and {len(quiet):,} queries)",
            "1.1; 1.3",
            ratios[0] <= 1.1 and ratios[1] <= 1.3,
        )


def _swapped(
    host: Host, client: Client, count: int, rate_qps: float
) -> tuple[list[Window], Records, float]:
    """What the load met while versions took turns; when it began, on the wall clock."""
    windows: list[Window] = []
    over = threading.Event()

    def swap() -> None:
        time.sleep(_QUIET_S)
        for turn in range(count):
            quiet_s = time.time()
            time.sleep(_QUIET_S)
            windows.append(Window("quiet", quiet_s, time.time()))
            _load(host, "ranker", version="12"[turn % 2])
            said = _events(host, "ranker")[-4:]
            at = {event["what"]: event["at_s"] for event in said}
            windows.append(Window("loading", at["loading"], at["loaded"]))
            windows.append(Window("switching", at["loaded"], at["switched"] + 1.0))
            windows.append(Window("freeing", at["switched"], at["freed"] + 1.0))
            time.sleep(1.0)
        over.set()

    thread = threading.Thread(target=swap)
    thread.start()
    schedule = WORKLOAD.reseed(7).schedule(rate_qps=rate_qps, duration_s=3600)
    began_s = time.time()
    records = client.run(schedule, Policy(256), watch=lambda *_: over.is_set())
    thread.join()
    done = records[records.status != Status.CANCELLED]
    return windows, done, began_s


def _latencies(records: Records, arrival_s: Any, windows: Sequence[Window]) -> Any:
    inside = np.zeros(len(records), bool)
    for window in windows:
        inside |= (arrival_s >= window.began_s) & (arrival_s < window.ended_s)
    return records.latency_s[inside & (records.status == Status.OK)]


def _percentile(values: Any, q: float) -> float:
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else float("nan")


def reloads(options: argparse.Namespace) -> Iterator[Row]:
    """Small ones, many: what the process keeps of each, and what a query costs then."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ranker = Path(folder) / "ranker"
        for seed in (0, 1):
            made = Path(folder) / f"made{seed}"
            made.mkdir()
            exported(load_model("dlrm-rmc1", scale=_SMALL, seed=seed), made)
            publish(made, ranker)
        host = stack.enter_context(_server(ranker, keep=0, load_share=1.0))
        client = stack.enter_context(_client(host, "ranker"))
        seen: list[tuple[int, float, float]] = []
        tenth = max(1, options.reloads // 10)
        for turn in range(options.reloads + 1):
            if turn and turn % tenth == 0:
                seen.append((turn, *_costs(host, client)))
            _load(host, "ranker", version="12"[turn % 2])
    _, memory, cost_s = (np.array(column) for column in zip(*seen, strict=True))
    grown = memory[-2:].mean() / memory[:2].mean()
    dearer = np.median(cost_s[-3:]) / np.median(cost_s[:3])
    yield Row(
        f"{options.reloads} reloads: memory at the end / after the first tenths",
        f"{grown:.3f} ({memory[0] / 2**20:,.0f} to {memory[-1] / 2**20:,.0f} MB)",
        "flat within 2 %",
        bool(grown <= 1.02),
    )
    yield Row(
        f"{options.reloads} reloads: server CPU of a query, likewise",
        f"{dearer:.3f} ({cost_s[0] * 1e3:.3f} to {cost_s[-1] * 1e3:.3f} ms)",
        "flat within 5 %",
        bool(dearer <= 1.05),
    )


def _costs(host: Host, client: Client) -> tuple[float, float]:
    """Resident bytes, and CPU seconds of the server a query."""
    schedule = WORKLOAD.reseed(3).schedule(rate_qps=300.0, duration_s=4.0)
    before_s = host.cpu_s()
    records = client.run(schedule, Policy(256))
    assert (records.status == Status.OK).all()
    return host.resident_bytes(), (host.cpu_s() - before_s) / len(schedule)


def beside(options: argparse.Namespace) -> Iterator[Row]:
    """Two models of weight 1; one is asked for five times its share."""
    arguments = ("a=dlrm-rmc1", "b=dlrm-rmc1", "--scale", "0.1", "--batch-size", "256")
    with ExitStack() as stack:
        host = stack.enter_context(served(*arguments))
        a, b = (stack.enter_context(_client(host, name)) for name in "ab")
        whole = drs.find_capacity(a, WORKLOAD, TARGET, Policy(256), budget_s=60).rate_qps
        rate = 0.4 * whole  # under its share of a half
        alone: list[float] = []
        together: list[float] = []
        held: list[bool | None] = []
        for turn in range(options.rounds):
            schedule = WORKLOAD.reseed(turn).schedule(rate_qps=rate, duration_s=options.round_s)
            alone.append(_p95_s(a.run(schedule, Policy(256))))
            flood = WORKLOAD.reseed(100 + turn).schedule(
                rate_qps=5 * whole / 2, duration_s=options.round_s + 2
            )
            thread = threading.Thread(target=b.run, args=(flood, Policy(256)))
            thread.start()
            time.sleep(1.0)
            found = a.run(schedule, Policy(256))
            thread.join()
            together.append(_p95_s(found))
            held.append(drs.summarize(found, TARGET).meets_sla)
    ratio = float(np.median(together) / np.median(alone))
    times = [", ".join(f"{s * 1e3:.1f}" for s in seconds) for seconds in (alone, together)]
    yield Row(
        f"a at {rate:,.0f} queries/s beside b at 5 × its share, both of weight 1: a's p95 / alone",
        f"{ratio:.2f} (ms: alone {times[0]}; together {times[1]}; target held in "
        f"{held.count(True)} of {len(held)})",
        "1.25, target held",
        ratio <= 1.25 and all(held),
    )


def _p95_s(records: Records) -> float:
    latency_s = np.where(records.status == Status.OK, records.latency_s, np.inf)
    return float(np.percentile(latency_s, 95, method="inverted_cdf"))


@contextmanager
def _server(ranker: Path, *, keep: int, load_share: float = 0.1) -> Iterator[Host]:
    """Without deadlines: what is slow counts, and is not turned away."""
    with tempfile.TemporaryDirectory() as folder:
        keys, config = Path(folder) / "keys", Path(folder) / "serve.toml"
        keys.write_text(f"benchmark infer,admin {_KEY}\n")
        config.write_text(
            f'[server]\nload_share = {load_share}\nkey_file = "{keys}"\n'
            f'[models.ranker]\nmodel = "{ranker}"\nbatch_size = 256\nsla_ms = 100\n'
            f'deadline_ms = 0\nkeep = {keep}\nversion = "2"\nslower = 10\n'
        )
        with served("--config", str(config)) as host:
            yield host


def _client(host: Host, name: str) -> Client:
    return Client(f"http://127.0.0.1:{host.http_port}", name, key=_KEY)


def _brings() -> dict[str, str]:
    """A new one each time: tritonclient writes into it."""
    return {"Authorization": f"Bearer {_KEY}"}


def _load(host: Host, model: str, **config: Any) -> None:
    with triton.InferenceServerClient(
        f"127.0.0.1:{host.http_port}", network_timeout=600.0
    ) as client:
        client.load_model(model, config=json.dumps(config), headers=_brings())


def _events(host: Host, model: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{host.http_port}/live.json?model={model}"
    time.sleep(0.6)  # it is made twice a second
    with urllib.request.urlopen(urllib.request.Request(url, headers=_brings())) as answer:
        return json.load(answer)["events"]  # type: ignore[no-any-return]


class Checked:
    """Asks one query again and again: its scores are those of the version that it says."""

    def __init__(self, host: Host, name: str) -> None:
        self._port, self._name = host.http_port, name
        self.asked = self.wrong = 0
        self._known: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Checked:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{self._port}") as client:
            inputs = self._inputs(client)
            while not self._over.wait(_EVERY_S):
                self.asked += 1
                try:
                    answer = client.infer(self._name, inputs, headers=_brings())
                except Exception:
                    self.wrong += 1
                    continue
                scores = answer.as_numpy(answer.get_response()["outputs"][0]["name"])
                version = answer.get_response()["model_version"]
                known = self._known.setdefault(version, scores)
                others = [s for v, s in self._known.items() if v != version]
                same = np.allclose(scores, known, rtol=1e-5)
                self.wrong += not same or any(np.allclose(scores, s, rtol=1e-5) for s in others)

    def _inputs(self, client: Any) -> list[Any]:
        """Of ids that every table has."""
        rng, given = np.random.default_rng(0), []
        for one in client.get_model_metadata(self._name, headers=_brings())["inputs"]:
            shape = [_CHECKED, *one["shape"][1:]]
            floats = one["datatype"] == "FP32"
            dtype = {"FP32": np.float32, "INT32": np.int32}.get(one["datatype"], np.int64)
            array = rng.random(shape) if floats else rng.integers(0, 10, shape)
            given.append(triton.InferInput(one["name"], shape, one["datatype"]))
            given[-1].set_data_from_numpy(array.astype(dtype))
        return given


PARTS = (swaps, reloads, beside)


def main() -> None:
    parser = asked(PARTS, __doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of dlrm-rmc1 (default 1)")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-s", type=float, default=10.0)
    parser.add_argument("--disk", default=None, help="a folder with 8 GB free (default: /tmp)")
    options = parser.parse_args()
    chosen = {part.__name__: partial(part, options) for part in PARTS}
    said = {name: getattr(options, name) for name in ("scale", "swaps", "reloads", "rounds")}
    given = [f" --{k} {v:g}" for k, v in said.items() if v != parser.get_default(k)]
    measure(chosen, options.only, RESULTS, __file__ + "".join(given))


if __name__ == "__main__":
    main()
