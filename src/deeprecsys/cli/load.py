"""`load`: open-loop load on any KServe v2 server, at one rate or to find its capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.bench import table
from deeprecsys.core import SLA, Policy, Records, UserError
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.client.client import Client
    from deeprecsys.experiments.loading import Load, LoadCapacity
    from deeprecsys.tuning.capacity import Run

NAME = "load"
HELP = """Put any KServe v2 (Open Inference Protocol) server under open-loop load.

At one rate, or to find the highest one that it answers within a target. A latency counts from
the scheduled arrival to the last byte of the answer. Exit code 1 if a target was asked for with
--sla-ms and was missed, no rate meets it, or not one query was answered; 2 if the server cannot
be reached.

Example: deeprecsys load http://localhost:8000 --model dlrm-rmc1 --find-capacity --sla-ms 100
"""
_VALUES = (
    "JSON file of what the inputs hold where the server does not say: "
    '{"ids": {"rows": 40000}, "x": {"normal": [0, 1]}, "y": {"low": 0, "high": 9}}, '
    'with "scope": "query", a candidate\'s "shape" and "datatype" where needed; jagged ones: '
    '{"ids": {"rows": 40000, "ragged": "n"}, "n": {"low": 0, "high": 20, "counts": "lengths"}}, '
    'or "ends", or "starts".'
)
_QUERIES = (
    "Recorded queries to send, in their order, instead of drawn ones: .npz, .parquet or .jsonl, "
    "a query a row."
)


@dataclass(frozen=True)
class LoadRequest:
    """The verb's options. UserError, before anything is asked, if they cannot be meant."""

    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="http://, https://, grpc:// or grpcs://HOST:PORT, or unix:PATH."
        ),
    ]
    model: Annotated[str, typer.Option(help="The model's name on the server.")]
    qps: Annotated[
        float | None, typer.Option(help="Queries per second.  [default: a trace's own rate]")
    ] = None
    find_capacity: Annotated[
        bool, typer.Option("--find-capacity", help="Find the highest rate that holds --sla-ms.")
    ] = False
    budget_s: Annotated[
        float | None, typer.Option(help="Bound on the search's time, s.  [default: 120]")
    ] = None
    duration_s: opt.DurationS = None
    queries: Annotated[int | None, typer.Option(help="End after this many.")] = None
    sla_ms: Annotated[float | None, typer.Option(help="Latency target, ms.  [default: none]")] = (
        None
    )
    percentile: Annotated[
        float | None, typer.Option(help="Percentile of the target.  [default: 95]")
    ] = None
    sizes: opt.Sizes = "production"
    arrivals: opt.Arrivals = "poisson"
    indices: opt.Indices = "zipf:0.92"
    processes: Annotated[int, typer.Option(help="That send; each uses one core at most.")] = 1
    connections: Annotated[int, typer.Option(help="At most, of each process.")] = 256
    values: Annotated[str | None, typer.Option(help=_VALUES)] = None
    queries_file: Annotated[str | None, typer.Option(help=_QUERIES)] = None
    timeout_ms: Annotated[
        float | None, typer.Option(help="Sent along as each query's deadline.  [default: none]")
    ] = None
    key: Annotated[str | None, typer.Option(help="Bearer token.", envvar="DEEPRECSYS_KEY")] = None
    header: Annotated[
        list[str] | None,
        typer.Option(help="NAME:VALUE, sent with every request. Several: give it again."),
    ] = None
    ca_file: Annotated[
        str | None,
        typer.Option(help="PEM certificates to trust over TLS.  [default: the system's]"),
    ] = None
    json_data: Annotated[
        bool, typer.Option("--json-data", help="Tensors as JSON instead of bytes: slow.")
    ] = False
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory", help="Tensors in shared memory, of a server on this machine."
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="Of workload and inputs.")] = 0
    out: opt.Out = None
    json_file: opt.JsonFile = None

    def check(self) -> None:
        opt.positive("--budget-s", self.budget_s)
        if self.queries_file is not None and self.sizes != "production":
            raise UserError("recorded queries have sizes of their own: leave out --sizes")
        if self.percentile is not None and self.sla_ms is None:
            raise UserError("--percentile is of a target: give --sla-ms with it")
        if self.find_capacity:
            self._check_search()

    def _check_search(self) -> None:
        if self.sla_ms is None:
            raise UserError("--find-capacity needs a target: give --sla-ms")
        if not (self.qps is None and self.duration_s is None and self.queries is None):
            raise UserError(
                "--find-capacity chooses rates and lengths itself: leave out --qps, --duration-s "
                "and --queries, or bound its time with --budget-s"
            )

    @property
    def sla(self) -> SLA | None:
        if self.sla_ms is None:
            return None
        return SLA(self.sla_ms / 1e3, 95.0 if self.percentile is None else self.percentile)

    @property
    def workload(self) -> Workload:
        return Workload(
            sizes=self.sizes, arrivals=self.arrivals, indices=self.indices, seed=self.seed
        )

    def client(self) -> Client:
        """Not yet entered."""
        from deeprecsys.client.access import parse_header
        from deeprecsys.client.client import Client
        from deeprecsys.client.values import read_values

        return Client(
            self.url, self.model, processes=self.processes, connections=self.connections,
            values=read_values(self.values) if self.values else None, queries=self.queries_file,
            seed=self.seed, key=self.key, ca_file=self.ca_file, binary=not self.json_data,
            headers=[parse_header(text) for text in self.header or ()],
            shared_memory=self.shared_memory,
            timeout_s=None if self.timeout_ms is None else self.timeout_ms / 1e3,
        )  # fmt: skip


@opt.measuring
def run(request: LoadRequest) -> int:
    from deeprecsys.experiments.benching import scheduled

    if not request.find_capacity:  # what is wrong with it is told before the server is asked
        if request.qps is None and not request.arrivals.startswith("replay:"):
            raise UserError("at which rate? give --qps, or --find-capacity; only --arrivals "
                            "replay:FILE has its own")  # fmt: skip
        scheduled(request.workload, request.qps, request.duration_s, request.queries)
    _ = request.sla, request.workload
    client = request.client()
    files.check_target("--json", request.json_file)
    with client:  # asks the server, before a folder is made
        folder = files.new_folder(request.out, NAME, request.model.replace("/", "-"))
        measure = _search if request.find_capacity else _one_rate
        found = measure(request, client)
    report = files.write(found, folder, request.json_file)
    if not found.reached and not found.interrupted:
        raise UserError(
            f"{found.url} could not be reached: {found.silence}; is the server still there? "
            f"report: {report}"
        )
    _shown(found, request, str(report))
    return _code(found, request)


def _one_rate(request: LoadRequest, client: Client) -> Load:
    from deeprecsys.experiments.benching import rate_of, scheduled
    from deeprecsys.experiments.loading import load

    lasting = request.duration_s, request.queries
    schedule = scheduled(request.workload, request.qps, *lasting)
    rate = rate_of(schedule, request.qps)
    with (
        show.Progress(
            show.console(request.json_file), request.sla, schedule.duration_s
        ) as progress,
        show.interruptible() as interrupted,
    ):
        _introduce(progress, client, f"{rate:,.4g} queries/s for {schedule.duration_s:.3g} s")

        def watch(so_far: Records, now_s: float) -> bool:
            progress.step(None, rate, so_far, now_s)
            return interrupted.is_set()

        return load(
            client, request.workload, rate_qps=request.qps, duration_s=request.duration_s,
            queries=request.queries, sla=request.sla, watch=watch,
        )  # fmt: skip


def _search(request: LoadRequest, client: Client) -> LoadCapacity:
    from deeprecsys.experiments.loading import BUDGET_S, load_capacity
    from deeprecsys.tuning import Observer

    sla, budget_s = request.sla, request.budget_s or BUDGET_S
    assert sla is not None
    with (
        show.Progress(show.console(request.json_file), sla, budget_s) as progress,
        show.interruptible() as interrupted,
    ):
        _introduce(progress, client, f"target {sla}, at most {budget_s:g} s")

        def on_run(policy: Policy, run: Run) -> None:
            progress.line(_run_line(run))

        def on_progress(policy: Policy, rate_qps: float, so_far: Records, now_s: float) -> None:
            progress.step(None, rate_qps, so_far, now_s)

        observer = Observer(stop=interrupted.is_set, on_progress=on_progress, on_run=on_run)
        return load_capacity(client, request.workload, sla, budget_s=budget_s, observer=observer)


def _code(found: Load | LoadCapacity, request: LoadRequest) -> int:
    from deeprecsys.experiments.loading import Load

    if found.interrupted:
        return 130
    if found.silence:
        return 1
    if isinstance(found, Load):
        return 1 if request.sla is not None and found.found.meets_sla is False else 0
    return 0 if found.capacity.rate_qps else 1


def _introduce(progress: show.Progress, client: Client, what: str) -> None:
    said = client.described
    name = " ".join(word for word in (said.server, said.version) if word) or "a server"
    progress.line(f"{client.model} on {name} at {client.address}, {what}")
    for line in client.assumptions:
        progress.line(f"assumed: {line}")
    if client.recorded is not None:
        progress.line(client.recorded.describe(str(client.queries)))


def _shown(found: Load | LoadCapacity, request: LoadRequest, report: str) -> None:
    from deeprecsys.experiments.loading import Load

    console = show.console(request.json_file)
    if isinstance(found, Load):
        console.print(table(found.found))
    console.print(f"\n{found.verdict}", style="bold", markup=False)
    for line in [*found.lines(), f"report: {report}"]:
        console.print(line, markup=False)
    if found.interrupted:
        console.print("interrupted: what was measured until then is kept", markup=False)


def _run_line(run: Run) -> str:
    word = {True: "meets", False: "misses", None: "undecided"}[run.summary.meets_sla]
    cut = ", cut short" if run.cut else ""
    return (
        f"{show.rate(run.rate_qps)} queries/s: {show.ms(run.summary.percentile_s)} ms, {word}{cut}"
    )
