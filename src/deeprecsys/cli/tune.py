"""`tune`: the main job. Wires model, engine and search together, and shows what comes."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprecsys.analysis.usage import sentences
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.profile import profiling
from deeprecsys.core import EXACT, Execution

if TYPE_CHECKING:
    from deeprecsys.experiments.tuning import Tuning
    from deeprecsys.tuning import Observer

NAME = "tune"
HELP = """Find the policy with the highest capacity: the most queries/s within the target.

Tries out how requests can be executed, measures the static baseline, searches, measures the best
again and compares it turn by turn, and checks the answer on fresh seeds.

Example: deeprecsys tune dlrm-rmc1 --sla-ms 50 --budget-s 120
"""


@opt.measuring
def run(
    request: opt.Request,
    method: Annotated[
        str, typer.Option(help="hill-climb, exhaustive, joint, static or simulated.")
    ] = "hill-climb",
    budget_s: Annotated[
        float | None,
        typer.Option(
            help="Bound on the search's time, s.  [default: by method, 48 to 480; "
            "with an accelerator half as much again]"
        ),
    ] = None,
    duration_s: opt.DurationS = None,
    accuracy: Annotated[
        str,
        typer.Option(
            help="How near exact scores an execution must be to be chosen: exact, 99.9, 99, any."
        ),
    ] = "99.9",
) -> int:
    from deeprecsys.analysis.accuracy import check_accuracy
    from deeprecsys.experiments.tuning import tune, usual_budget_s

    check_accuracy(accuracy)
    only = None if request.execution is None else Execution.parse(request.execution)
    if request.beside and only is None:
        only = EXACT  # others are tried out in turns, alone on the machine
    request = replace(request, execution=None)  # against which it is held

    usual_s = usual_budget_s(method, bool(request.accelerator))
    opt.positive("--budget-s", budget_s)
    opt.positive("--duration-s", duration_s)
    _ = request.sla
    folder = files.prepared(request, NAME, request.label)
    budget = usual_s if budget_s is None else budget_s
    with (
        show.Progress(show.console(request.json_file), request.sla, budget) as progress,
        show.interruptible() as interrupted,
        show.loaded(progress, request) as engine,
    ):
        progress.line(
            f"{engine.workers} workers, runtime {engine.runtime.name}, target {request.sla}, "
            f"at most {budget:g} s"
        )
        found = tune(
            engine, request.workload, request.sla, method,
            budget_s=budget, run_s=duration_s, watts=request.power,
            observer=observer(progress, interrupted), on_profile=profiling(progress, folder),
            accuracy=accuracy, execution=only, say=progress.line,
        )  # fmt: skip
    return shown(found, request.json_file, files.write(found, folder, request.json_file))


def observer(progress: show.Progress, interrupted: threading.Event) -> Observer:
    """Shows a search under way, and ends it on Ctrl-C."""
    from deeprecsys.experiments import verdicts
    from deeprecsys.tuning import Observer

    return Observer(
        stop=interrupted.is_set,
        on_phase=progress.phase,
        on_progress=progress.step,
        on_trial=lambda trial: progress.line(verdicts.trial(trial)),
    )


def shown(found: Tuning, json_file: str | None, report: Any) -> int:
    """Table, verdict, what was used; the exit code."""
    console, summary = show.console(json_file), found.to_dict()
    console.print(show.trials_table(summary))
    console.print(f"\n{found.verdict}", style="bold", markup=False)
    for line in [*sentences(found.used), *summary.get("lost", [])]:
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    if found.interrupted:
        console.print("interrupted: what was measured until then is kept", markup=False)
        return 130
    return 0 if found.best else 1
