"""The payload's way into the server: `python benchmarks/payload.py --only shm uds`, in ten minutes.

Queries of dlrm-rmc3, 2.8 MB on average: their inputs in shared memory against the engine in this
process, and sent through a Unix socket against TCP on loopback, in turns, the client on the
server's own cores. `--scale 0.01 --seconds 0.1` only shows that it works. Rows are shown as they
come and kept in docs/payload.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import deeprecsys as drs
from deeprecsys.client.client import Client
from deeprecsys.core import SLA
from deeprecsys.models import load_model
from rows import Row, asked, measure
from served import served
from turns import WORKLOAD, compare, said

RESULTS = Path(__file__).parents[1] / "docs" / "payload.md"
MODEL, BATCH, SLA_S = "dlrm-rmc3", 256, 0.1


def shm(scale: float, seconds: float) -> Iterator[Row]:
    """Inputs in shared memory, answers with the response, as `tritonclient` does by default."""
    model = load_model(MODEL, scale=scale)
    with ExitStack() as stack:
        host = stack.enter_context(_server(scale))
        url = f"http://127.0.0.1:{host.http_port}"
        systems: dict[str, Any] = {
            "shared memory": stack.enter_context(Client(url, MODEL, shared_memory=True)),
            "in-process": stack.enter_context(drs.Engine(model)),
        }
        yield _row(systems, f"capacity, shared memory / in-process, {_about(model)}", 0.95, seconds)


def uds(scale: float, seconds: float) -> Iterator[Row]:
    """The same server, by either."""
    model = load_model(MODEL, scale=min(scale, 0.01))  # only to say how long a query is
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = f"{folder}/http.sock"
        host = stack.enter_context(_server(scale, "--uds", path))
        systems: dict[str, Any] = {
            "Unix socket": stack.enter_context(Client(f"unix:{path}", MODEL)),
            "TCP": stack.enter_context(Client(f"http://127.0.0.1:{host.http_port}", MODEL)),
        }
        yield _row(systems, f"capacity, Unix socket / TCP, {_about(model)}", 1.05, seconds)


def _server(scale: float, *more: str) -> Any:
    """Without deadlines: a capacity counts every query. Inputs as in the paper."""
    return served(MODEL, "--batch-size", str(BATCH), "--deadline-ms", "0", "--no-query-inputs",
                  "--scale", str(scale), *more)  # fmt: skip


def _row(systems: dict[str, Any], what: str, least: float, seconds: float) -> Row:
    times = {"search_s": 30.0 * seconds, "round_s": 4.0 * seconds, "most_s": 90.0 * seconds}
    rates, ratios = compare(systems, SLA(SLA_S), BATCH, **times)
    first, second = systems
    ratio = ratios[second]
    return Row(
        what,
        f"{said(ratio)} ({rates[first]:,.0f} and {rates[second]:,.0f} queries/s)",
        f"at least {least}",
        ratio is not None and ratio.ratio >= least,
    )


def _about(model: Any) -> str:
    size = int(WORKLOAD.sample_sizes(4096).mean())
    one = model.example(1, np.random.default_rng(0))
    width = sum(array.nbytes for array in one.values())
    return f"{MODEL}, {size * width / 1e6:.1f} MB a query, at {SLA(SLA_S)}"


PARTS = (shm, uds)


def main() -> None:
    parser = asked(PARTS, __doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Of the tables.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Times the usual length.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    parts = {part.__name__: partial(part, given.scale, given.seconds) for part in PARTS}
    measure(parts, given.only, given.results, __file__)


if __name__ == "__main__":
    main()
