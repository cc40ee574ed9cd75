"""What serving costs beside a peer: `make bench-peers`, or `python benchmarks/peers.py --only ncf`.

The same TorchScript artifact in two threads of this process, under `deeprecsys serve`, and under
mosec (`pip install mosec==0.9.8`; left out where it is not installed). One client and one schedule
for all, in turns; the client is on the same cores. Rows are shown as they come and kept in
docs/peers.md. Full size takes 17 GB of memory: each of mosec's two processes has tables of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts import OwnModel
from deeprecsys.client.client import Client
from deeprecsys.core import SLA, Records, System, UserError
from deeprecsys.engine import Engine
from deeprecsys.models import load_model
from deeprecsys.tuning.interleave import Ratio
from own_models import exported
from rows import Row, asked, measure
from served import Bare, free_port, posted, running, served
from turns import compare, said

RESULTS = Path(__file__).parents[1] / "docs" / "peers.md"
WORKERS = 2
_MISSING = "skipped: mosec is not installed: pip install mosec==0.9.8"
_STARTED_S, _SETTLED_S = 120.0, 5.0  # its processes are not ready at the same time
_WIDEST = 1.5  # an interval's end over its beginning
_CHECKED = 100  # candidates: less than a batch, so that nobody cuts the query
_TOLERANCE = 1e-5  # of a score: kernels sum in an order of their own


def ncf(options: argparse.Namespace) -> Iterator[Row]:
    yield from _rows(options, "ncf", 512, {0.025: (0.82, 1.2), 0.005: (0.70, 1.4)})


def rmc1(options: argparse.Namespace) -> Iterator[Row]:
    yield from _rows(options, "dlrm-rmc1", 256, {0.1: (0.88, 1.3)})


def rmc3(options: argparse.Namespace) -> Iterator[Row]:
    yield from _rows(options, "dlrm-rmc3", 256, {0.1: (0.78, 1.6)})


def _rows(
    options: argparse.Namespace,
    name: str,
    batch: int,
    wanted: Mapping[float, tuple[float, float]],
) -> Iterator[Row]:
    """wanted: by target, the least ratios to the engine and to mosec."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        own = exported(load_model(name, scale=options.scale), Path(folder))
        gc.collect()  # the zoo's model, gigabytes in a cycle of references
        systems = _opened(stack, own, batch)
        for target_s, least in wanted.items():
            yield from _compared(options, name, batch, systems, SLA(target_s), least)


def _opened(stack: ExitStack, own: OwnModel, batch: int) -> dict[str, System]:
    """All of them, once they are known to give one query the same scores."""
    folder, query = own.path.parent, own.example(_CHECKED, np.random.default_rng(0))
    engine = stack.enter_context(Engine(own, WORKERS))
    scores = engine.submit(query).result()
    # Without deadlines, and so without admission: a capacity counts every query.
    flags = ("--batch-size", str(batch), "--deadline-ms", "0", "--sla-ms", "100")
    host = stack.enter_context(served(str(folder), "--workers", str(WORKERS), *flags))
    answer = json.loads(_asked(host.http_port, *posted(folder.name, query)))
    _check_same("over HTTP", np.array(answer["outputs"][0]["data"]), scores)
    ours = stack.enter_context(Client(f"http://127.0.0.1:{host.http_port}", folder.name))
    systems: dict[str, System] = {"http": ours, "in-process": engine}
    if util.find_spec("mosec") is None:
        return systems
    body = b"".join(query[spec.name].tobytes() for spec in own.inputs)
    head = b"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    port = stack.enter_context(_mosec(own.path, head, body))
    _check_same("mosec", np.frombuffer(_asked(port, head, body), np.float32), scores)
    theirs = stack.enter_context(_Mosec(port, own, head, body))
    if theirs.columns != ours.columns:
        raise RuntimeError("the two servers would be sent different queries")
    return systems | {"mosec": theirs}


def _compared(
    options: argparse.Namespace,
    name: str,
    batch: int,
    systems: Mapping[str, System],
    sla: SLA,
    least: tuple[float, float],
    missing: str = _MISSING,
) -> Iterator[Row]:
    """missing: why there is no mosec among the systems, if there is none."""
    whats = {
        "in-process": f"capacity, HTTP / in-process, {name} at {sla}",
        "mosec": f"capacity, HTTP / mosec, {name} at {sla}",
    }
    times = {key: getattr(options, key) for key in ("search_s", "round_s", "most_s")}
    try:
        rates, ratios = compare(systems, sla, batch, **times)
    except UserError as error:  # the machine is too busy
        if str(error).startswith("mosec:"):
            both = {key: one for key, one in systems.items() if key != "mosec"}
            yield from _compared(options, name, batch, both, sla, least, str(error))
            return
        for what, ratio in zip(whats.values(), least, strict=True):
            yield Row(what, str(error), f"at least {ratio}", None)
        return
    for (other, what), wanted in zip(whats.items(), least, strict=True):
        if other not in rates:
            yield Row(what, missing, f"at least {wanted}", None)
            continue
        found = ratios[other]
        yield Row(
            what,
            f"{said(found)} ({rates['http']:,.0f} and {rates[other]:,.0f} queries/s)",
            f"at least {wanted}",
            _met(found, wanted),
        )


def _met(found: Ratio | None, wanted: float) -> bool | None:
    """None: too little is known for a verdict, as where others use the cores."""
    if found is None or found.interval[1] > _WIDEST * found.interval[0]:
        return None
    return found.ratio >= wanted


class _Mosec(Client):
    """mosec works on what a stopped run has left behind, which must not be in the next one's way:
    a run ends when the query of this head and body, sent after it, is answered."""

    def __init__(self, port: int, own: OwnModel, head: bytes, body: bytes) -> None:
        url = f"http://127.0.0.1:{port}/inference"
        super().__init__(url, "", bare=True, values=_values(own))
        self._last = port, head, body

    def run(self, *given: Any, **options: Any) -> Records:
        records = super().run(*given, **options)
        _asked(*self._last)
        return records


@contextmanager
def _mosec(path: Path, head: bytes, body: bytes) -> Iterator[int]:
    """Its port, once it has answered this query."""
    port = free_port()
    script = str(Path(__file__).with_name("mosec_server.py"))
    flags = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    # So long that its queue of 1,024 refuses nobody for having waited, as ours does not.
    command = [sys.executable, script, str(path), *flags, "--timeout", "10000"]
    with running(command) as process:
        until = time.monotonic() + _STARTED_S
        while True:
            try:
                _asked(port, head, body)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"mosec did not become ready: {command}") from None
                time.sleep(0.2)
        time.sleep(_SETTLED_S)
        yield port


def _asked(port: int, head: bytes, body: bytes) -> bytes:
    """The answer's body; again where the queue is full."""
    status = 429
    while status == 429:
        with Bare(port) as client:
            status, answer = client.ask(head, body)
    if status != 200:
        raise RuntimeError(answer.decode(errors="replace"))
    return answer


def _check_same(what: str, found: Any, scores: Any) -> None:
    if not np.allclose(found, scores.reshape(-1), rtol=_TOLERANCE, atol=0):
        raise RuntimeError(f"{what}: other scores than in-process, of the same query")


def _values(own: OwnModel) -> dict[str, Any]:
    """What our server says of its inputs, and mosec cannot."""
    return {
        spec.name: {"datatype": spec.datatype, "shape": list(spec.shape)}
        | ({} if spec.rows is None else {"rows": spec.rows})
        for spec in own.inputs
    }


def main() -> None:
    parts = (ncf, rmc1, rmc3)
    parser = asked(parts, __doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the tables (default 1)")
    parser.add_argument("--search-s", type=float, default=30.0, help="of one search (default 30)")
    parser.add_argument("--round-s", type=float, default=4.0, help="of one turn (default 4)")
    parser.add_argument("--most-s", type=float, default=120.0, help="of all turns (default 120)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    options = parser.parse_args()
    script = __file__ if options.scale == 1 else f"{__file__} --scale {options.scale:g}"
    chosen = {part.__name__: partial(part, options) for part in parts}
    measure(chosen, options.only, options.results, script)


if __name__ == "__main__":
    main()
