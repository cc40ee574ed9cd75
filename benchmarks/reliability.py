"""A server under overload, attacked, drained, with a worker killed, mutated at, and soaked.

`python benchmarks/reliability.py --only overload` (or attacks, drain, ending, kill, fuzz, soak; the
last takes half an hour). Real servers in processes of their own, load from others, all on this
machine's cores. Rows are shown as they come and kept in docs/reliability.md.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import deeprecsys as drs
from attacks import ATTACKS
from deeprecsys.client.client import Client
from deeprecsys.core import SLA, Policy, Records, Status
from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.serving.dataplane import Served
from deeprecsys.serving.server import Address, Server
from rows import Row, asked, measure
from served import Bare, Host, served
from turns import WORKLOAD

RESULTS = Path(__file__).parents[1] / "docs" / "reliability.md"
DIN_SLA = SLA(0.300)
DIN = ("din", "--sla-ms", "300", "--batch-size", "256")
MUTATIONS = 100_000
_OVERLOAD_S = 20.0
_ATTACK_S = 8.0
_DRAIN_S = 2.0


def overload() -> Iterator[Row]:
    """`din`, users sent once, target 300 ms: far beyond what it can do, and back."""
    with ExitStack() as stack:
        host = stack.enter_context(served(*DIN))
        url = f"http://127.0.0.1:{host.http_port}"
        client = stack.enter_context(Client(url, "din", connections=2000, patience_s=30.0))
        capacity = drs.find_capacity(client, WORKLOAD, DIN_SLA, Policy(256), budget_s=90).rate_qps
        rss = host.resident_bytes()
        at: dict[float, list[tuple[float, float]]] = {}
        for turn, times in enumerate((1.0, 2.0, 1.0, 5.0, 1.0, 10.0, 1.0)):
            schedule = WORKLOAD.reseed(turn).schedule(
                rate_qps=times * capacity, duration_s=_OVERLOAD_S
            )
            before_s = host.cpu_s()
            records = client.run(schedule, Policy(256))
            told = client.last_run()
            good = _good(records, DIN_SLA) / _OVERLOAD_S
            at.setdefault(times, []).append((good, _admitted_p95_s(records)))
            if times == 1.0:
                continue
            reference = np.mean([g for g, _ in at[1.0]])
            yield Row(
                f"din at {times:.0f}× its capacity of {capacity:.1f} queries/s: goodput / capacity",
                f"{good / capacity:.2f} (at 1×: {reference / capacity:.2f}); answers "
                f"{_counts(told['by_status'])}, {told['unanswered']} unanswered; CPU in cores: "
                f"client {told['core_share']:.2f}, server "
                f"{(host.cpu_s() - before_s) / _OVERLOAD_S:.2f}",
                "0.8",
                good / capacity >= 0.8,
            )
            p95_s = _admitted_p95_s(records)
            yield Row(
                f"din at {times:.0f}×: p95 of the queries that were admitted",
                f"{p95_s * 1e3:.0f} ms",
                "300 ms",
                p95_s <= DIN_SLA.latency_s,
            )
        grown = host.resident_bytes() / rss
        yield Row("memory after, over before", f"{grown:.3f}", "bounded", grown < 1.1)
        records = client.run(
            WORKLOAD.reseed(99).schedule(rate_qps=capacity / 2, duration_s=10), Policy(256)
        )
        early = records[records.arrival_s < 2.0]
        yield Row(
            "the first 2 s after 10×, at half of capacity",
            f"{np.mean(early.status == Status.OK):.1%} answered, p95 "
            f"{_admitted_p95_s(early) * 1e3:.0f} ms",
            "recovers within seconds",
            bool(np.mean(early.status == Status.OK) >= 0.95),
        )


def attacks() -> Iterator[Row]:
    """Each attack of `attacks.py`, beside half of what the server can do: what of the honest
    queries is answered in time, over the same without, in turns; and the memory it took."""
    arguments = ("--max-waiting-mb", "256", "--max-unsent-mb", "64", "--send-s", "5")
    with ExitStack() as stack:
        host = stack.enter_context(served("dlrm-rmc1", "--scale", "0.05", *arguments))
        client = stack.enter_context(Client(f"http://127.0.0.1:{host.http_port}", "dlrm-rmc1"))
        sla = SLA(0.1)
        rate = 0.5 * drs.find_capacity(client, WORKLOAD, sla, budget_s=40).rate_qps
        for turn, name in enumerate(ATTACKS):
            schedule = WORKLOAD.reseed(turn).schedule(rate_qps=rate, duration_s=_ATTACK_S)
            alone = _good(client.run(schedule, Policy()), sla)
            before = host.resident_bytes()
            with _attacked(name, host), Peak(host) as peak:
                records = client.run(schedule, Policy())
            told = client.last_run()
            share = _good(records, sla) / max(alone, 1)
            grown = peak.bytes - before
            yield Row(
                f"{name}: {_said(name)} Honest goodput at {rate:,.0f} queries/s, with / without",
                f"{share:.3f} ({alone} without; answers {_counts(told['by_status'])}, "
                f"{told['unanswered']} unanswered); memory {grown / 2**20:+,.0f} MB",
                "0.95; under 256 MB + 64 MB",
                share >= 0.95 and grown < 1.1 * (320 << 20),
            )


def _said(name: str) -> str:
    return (ATTACKS[name].__doc__ or "").strip()


@contextmanager
def _attacked(name: str, host: Host) -> Iterator[None]:
    ports = [str(host.http_port), str(host.grpc_port)]
    command = [sys.executable, str(Path(__file__).parent / "attacks.py"), name, *ports]
    process = subprocess.Popen([*command, str(_ATTACK_S + 2)])
    try:
        time.sleep(2.0)  # it has begun
        yield
    finally:
        process.kill()
        process.wait()
        time.sleep(1.0)


class Peak:
    """The most that a process held of memory while this was open."""

    def __init__(self, host: Host) -> None:
        self._host, self.bytes = host, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.bytes = max(self.bytes, self._host.resident_bytes())


def ending() -> Iterator[Row]:
    """SIGTERM while it loads, idle, and while clients do not read: how long it takes to end."""
    took: dict[str, float] = {}
    for state in ("loading", "idle", "unread", "slow_bodies"):
        with ExitStack() as stack:
            wait = state != "loading"
            arguments = ("--scale", "0.05", "--drain-s", str(_DRAIN_S))
            host = stack.enter_context(served("dlrm-rmc1", *arguments, wait=wait))
            if state in ATTACKS:
                stack.enter_context(_attacked(state, host))
            began = time.monotonic()
            host.process.terminate()
            code = host.process.wait(60)
            took[state] = time.monotonic() - began
            assert code == 0, f"{state}: {code}"
    yield Row(
        f"SIGTERM, --drain-s {_DRAIN_S:g}: ended within",
        ", ".join(f"{state} {seconds:.1f} s" for state, seconds in took.items()),
        f"{_DRAIN_S + 5:g} s",
        max(took.values()) <= _DRAIN_S + 5,
    )


def drain() -> Iterator[Row]:
    """SIGTERM at 80 % of capacity: everything that was taken is answered, and it exits 0."""
    lost, answers, codes = 0, dict[str, int](), []
    for turn in range(5):
        with ExitStack() as stack:
            host = stack.enter_context(served("dlrm-rmc1", "--scale", "0.05"))
            client = stack.enter_context(
                Client(f"http://127.0.0.1:{host.http_port}", "dlrm-rmc1", patience_s=10.0)
            )
            sla = SLA(0.1)
            if not turn:
                rate = 0.8 * drs.find_capacity(client, WORKLOAD, sla, budget_s=40).rate_qps
            schedule = WORKLOAD.reseed(turn).schedule(rate_qps=rate, duration_s=6)
            timer = threading.Timer(3.0, host.process.terminate)
            timer.start()
            client.run(schedule, Policy())
            told = client.last_run()
            codes.append(host.process.wait(30))
            lost += told["unanswered"] - told["refused"]
            for status, n in told["by_status"].items():
                answers[status] = answers.get(status, 0) + n
    yield Row(
        f"SIGTERM at 80 % load ({rate:,.0f} queries/s), five times: lost",
        f"{lost} (answers {_counts(answers)}; connections refused afterwards are not counted), "
        f"exit codes {codes}",
        "0",
        lost == 0 and set(codes) == {0},
    )


class Mortal:
    """A runtime whose worker can be killed: the next request ends its thread."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.name = runtime, runtime.name
        self.enter_thread, self.prepare = runtime.enter_thread, runtime.prepare
        self.execute_together = runtime.execute_together
        self.deadly = threading.Event()

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        if self.deadly.is_set():
            self.deadly.clear()
            raise SystemExit
        self._runtime.execute(prepared, lo, hi)


def kill() -> Iterator[Row]:
    """A worker dies at half load, ten times: its query fails clearly, no other notices."""
    from deeprecsys.runtimes import make_runtime

    model = load_model("dlrm-rmc1", scale=0.05)
    mortal = Mortal(make_runtime("torchscript", model))
    server = Server(
        Served("dlrm-rmc1", Policy(128), SLA(0.1), 0.1),
        drs.Engine(model, 2, mortal).__enter__,
        Address("127.0.0.1", 0, None),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    server.ready.wait()
    with Client(f"http://127.0.0.1:{server.http_port}", "dlrm-rmc1") as client:
        rate = 0.5 * drs.find_capacity(client, WORKLOAD, SLA(0.1), budget_s=40).rate_qps
        timers = [threading.Timer(1.0 + k, mortal.deadly.set) for k in range(10)]
        for timer in timers:
            timer.start()
        client.run(WORKLOAD.schedule(rate_qps=rate, duration_s=12), Policy())
        told = client.last_run()
        load = server.plane.engine.load()  # type: ignore[union-attr]
    server.stop()
    thread.join()
    yield Row(
        f"a worker killed ten times at 50 % load ({rate:,.0f} queries/s): lost without an answer",
        f"{told['unanswered']}; {len(load.lost_workers)} replaced; answers "
        f"{_counts(told['by_status'])}",
        "0",
        told["unanswered"] == 0 and len(load.lost_workers) == 10,
    )


def fuzz() -> Iterator[Row]:
    """Mutated requests: bytes changed, cut, doubled, of the head, the JSON or the tensors."""
    with served("dlrm-rmc1", "--scale", "0.001") as host:
        model = load_model("dlrm-rmc1", scale=0.001)
        inputs = model.example(2, np.random.default_rng(0))
        seen = _fuzz_http(host.http_port, inputs, MUTATIONS // 2)
        yield _fuzzed("HTTP", MUTATIONS // 2, seen, {"200", "closed"}, "4", {"503", "504"})
        assert host.grpc_port is not None
        seen = _fuzz_grpc(host.grpc_port, inputs, MUTATIONS // 2)
        wrong = {"INTERNAL", "UNKNOWN"}
        yield Row(
            f"{MUTATIONS // 2:,} mutated requests over gRPC",
            _counts(seen),
            "no crash, no hang, no internal error",
            not wrong & seen.keys() and host.process.is_running(),
        )
        with Bare(host.http_port) as client:
            status, _ = client.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        yield Row("ready after both", str(status), "200", status == 200)


def _fuzzed(
    name: str, n: int, seen: dict[str, int], fine: set[str], family: str, also: set[str]
) -> Row:
    allowed = all(s in fine or s in also or s.startswith(family) for s in seen)
    return Row(
        f"{n:,} mutated requests over {name}",
        _counts(seen),
        "no crash, no hang, no 5xx but 503 and 504",
        allowed,
    )


def _mutate(rng: np.random.Generator, whole: bytes, head: int) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(0, min(head, len(data)) if rng.random() < 0.8 else len(data)))
        match rng.integers(0, 6):
            case 0:
                data[at] = rng.integers(0, 256)
            case 1:
                del data[at : at + int(rng.integers(1, 20))]
            case 2:
                data[at:at] = bytes(rng.integers(32, 127, rng.integers(1, 8), dtype=np.uint8))
            case 3:
                data[at:at] = data[at : at + 30]
            case 4:
                data[at : at + 1] = rng.choice([b"-1", b"1e9", b"null", b"[", b'"', b"NaN", b"{}"])
            case _:
                del data[at:]
    return bytes(data)


def _fuzz_http(port: int, inputs: Any, n: int) -> dict[str, int]:
    """Answers by status; "closed": the connection ended, as HTTP does where no answer is due."""
    rng = np.random.default_rng(0)
    head, data = wire.request(inputs, id="fuzz", parameters={"timeout": 900_000})
    body = b"".join([head, *map(bytes, data)])
    seen: dict[str, int] = {}
    client: Bare | None = None
    for _ in range(n):
        changed = _mutate(rng, body, len(head)) if rng.random() < 0.8 else body
        lines = (
            "POST /v2/models/dlrm-rmc1/infer HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {len(changed)}\r\nInference-Header-Content-Length: {len(head)}\r\n"
        ).encode()
        raw_head = changed is body
        if raw_head:
            lines = _mutate(rng, lines, len(lines))
        try:
            if client is None:
                client = Bare(port)
                client.socket.settimeout(0.05 if raw_head else 20)
            status = str(client.ask(lines + b"\r\n", changed)[0])
        except TimeoutError:
            status = "closed" if raw_head else "hang"  # a head that promises more than is sent
        except (OSError, ValueError):
            status = "closed"
        seen[status] = seen.get(status, 0) + 1
        if client is not None and (raw_head or status in ("closed", "hang", "400", "413")):
            client.socket.close()
            client = None
    return seen


def _fuzz_grpc(port: int, inputs: Any, n: int) -> dict[str, int]:
    rng = np.random.default_rng(1)
    request = message("ModelInferRequest")(model_name="dlrm-rmc1")
    for name, array in inputs.items():
        datatype = "FP32" if array.dtype == np.float32 else "INT32"
        request.inputs.add(name=name, shape=array.shape, datatype=datatype)
        request.raw_input_contents.append(array.tobytes())
    whole = request.SerializeToString()
    seen: dict[str, int] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(n):
            try:
                call(_mutate(rng, whole, 400), timeout=20)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name  # type: ignore[attr-defined]
            seen[code] = seen.get(code, 0) + 1
    return seen


def soak(seconds: float) -> Iterator[Row]:
    """So long at 80 % of capacity: memory and errors.

    With a deadline of 2 s: with the target for one, some queries of half an hour are turned away,
    as they should be, and an error would hide among them.
    """
    with ExitStack() as stack:
        host = stack.enter_context(served("dlrm-rmc1", "--scale", "0.05", "--deadline-ms", "2000"))
        client = stack.enter_context(Client(f"http://127.0.0.1:{host.http_port}", "dlrm-rmc1"))
        rate = 0.8 * drs.find_capacity(client, WORKLOAD, SLA(0.1), budget_s=60).rate_qps
        resident: list[float] = []
        errors: dict[str, int] = {}
        answered = unanswered = 0
        p95: list[float] = []
        for turn in range(int(seconds / 60)):
            records = client.run(
                WORKLOAD.reseed(turn).schedule(rate_qps=rate, duration_s=60), Policy()
            )
            told = client.last_run()
            unanswered += told["unanswered"]
            for status, count in told["by_status"].items():
                if status == "200":
                    answered += count
                else:
                    errors[status] = errors.get(status, 0) + count
            resident.append(host.resident_bytes() / 1e6)
            p95.append(drs.summarize(records, SLA(0.1)).p95_s * 1e3)
            print(f"  minute {turn + 1}: {resident[-1]:.1f} MB, p95 {p95[-1]:.1f} ms", flush=True)
            gc.collect()
    settled = resident[2:]
    spread = max(settled) / min(settled) - 1
    yield Row(
        f"{seconds / 60:.0f} minutes at 80 % of capacity ({rate:,.0f} queries/s): memory from "
        "minute 3",
        f"{min(settled):.0f} to {max(settled):.0f} MB, {spread:.2%}",
        "flat within 2 %",
        spread <= 0.02,
    )
    yield Row(
        "the same: errors",
        f"{answered:,} answered, {unanswered} unanswered, others {_counts(errors) or 'none'}; "
        f"p95 by minute {min(p95):.0f} to {max(p95):.0f} ms",
        "none",
        not errors and not unanswered,
    )


def _good(records: Records, sla: SLA) -> int:
    """Queries answered within the target."""
    return int((records.latency_s[records.status == Status.OK] <= sla.latency_s).sum())


def _admitted_p95_s(records: Records) -> float:
    """Of those not turned away; one that was taken and expired counts as endless."""
    admitted = records[np.isin(records.status, (Status.OK, Status.EXPIRED))]
    latency = np.sort(np.where(np.isnan(admitted.latency_s), np.inf, admitted.latency_s))
    return float(latency[-(-95 * len(latency) // 100) - 1]) if len(latency) else float("nan")


def _counts(by: dict[str, int]) -> str:
    return ", ".join(f"{n:,} × {name}" for name, n in sorted(by.items()))


PARTS: tuple[Callable[..., Iterator[Row]], ...] = (
    overload, attacks, drain, ending, kill, fuzz, soak,
)  # fmt: skip


def main() -> None:
    parser = asked(PARTS, __doc__)
    parser.add_argument("--soak-s", type=float, default=1800.0, help="of the soak")
    given = parser.parse_args()
    parts = {part.__name__: part for part in PARTS} | {"soak": partial(soak, given.soak_s)}
    measure(parts, given.only, RESULTS, __file__)


if __name__ == "__main__":
    main()
