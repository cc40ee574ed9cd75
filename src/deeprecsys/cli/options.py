"""The options that verbs share, and what they make: a model, a workload, a target, an engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprecsys.core import SLA, UserError
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="One of `deeprecsys models`.")]
SlaMs = Annotated[float | None, typer.Option(help="Latency target, ms.  [default: the model's]")]
Percentile = Annotated[
    float | None, typer.Option(help="Percentile of the target.  [default: the model's, 95]")
]
Workers = Annotated[
    int | None, typer.Option(help="Worker threads.  [default: the cores this process may use]")
]
Sizes = Annotated[
    str,
    typer.Option(
        help="Query sizes: production, heavy-tail, lognormal, normal, fixed:N, uniform:A-B, "
        "file:PATH."
    ),
]
Arrivals = Annotated[
    str, typer.Option(help="Arrivals: poisson, constant, bursty, daily, replay:FILE.")
]
Indices = Annotated[str, typer.Option(help="Table look-ups: zipf:S or uniform.")]
Scale = Annotated[float, typer.Option(help="Rows of every table, times this.")]
Variant = Annotated[str, typer.Option(help="paper, or authors-code.")]
RuntimeName = Annotated[str, typer.Option("--runtime", help="auto, torchscript or eager.")]
Seed = Annotated[int, typer.Option(help="Of weights and workload.")]
Out = Annotated[
    str | None, typer.Option(help="Folder of the run.  [default: runs/<time>-<verb>-<model>]")
]
Json = Annotated[
    str | None, typer.Option(help="Also write the summary to this file; - for standard output.")
]
DurationS = Annotated[
    float | None, typer.Option(help="Length of a run, s.  [default: as needed; bench 10]")
]


def target(model_target: SLA, sla_ms: float | None, percentile: float | None) -> SLA:
    return SLA(
        model_target.latency_s if sla_ms is None else sla_ms / 1e3,
        model_target.percentile if percentile is None else percentile,
    )


def workload(sizes: str, arrivals: str, indices: str, seed: int) -> Workload:
    return Workload(sizes=sizes, arrivals=arrivals, indices=indices, seed=seed)


def positive(name: str, value: float | None) -> None:
    """UserError unless None or positive and finite."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} must be positive, not {value:g}")


def check_early(model: str, variant: str, scale: float, workers: int | None, runtime: str) -> Any:
    """The specification, once every option that can be wrong was looked at: before any work."""
    from deeprecsys.models import get_spec
    from deeprecsys.runtimes import RUNTIMES

    spec = get_spec(model, variant)
    spec.check_scale(scale)
    positive("--workers", workers)
    if runtime != "auto" and runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}; known: auto, {', '.join(sorted(RUNTIMES))}")
    return spec


def open_engine(model: Any, workers: int | None, runtime: str, workload: Workload) -> Engine:
    from deeprecsys.engine import Engine

    largest = max(1024, workload.size_law.largest)
    return Engine(model, workers, runtime, largest=min(largest, 4096))
