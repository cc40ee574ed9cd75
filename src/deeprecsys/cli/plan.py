"""`plan`: how many machines of which kind a given traffic needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import UserError
from deeprecsys.fleet import file as fleet_file

if TYPE_CHECKING:
    from deeprecsys.experiments.plan import Answer, Demand, Offer, Plan

NAME = "plan"
HELP = """How many machines of which kind, for a given traffic and target.

FILE states the kinds (profile or law, cost, watts) and the model; see docs/fleets.md. Everything
is simulated. Exit code 1 if no number of machines serves it.

Example: deeprecsys plan examples/plan.toml --qps 1000000 --growth 0.2 --spare 4
"""


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Kinds and model, in TOML.")],
    qps: Annotated[
        float | None, typer.Option(help="Peak queries/s.  [default: the file's]")
    ] = None,
    peak: Annotated[float, typer.Option(help="Daily peak over the mean that is given.")] = 1.0,
    growth: Annotated[float, typer.Option(help="Share of more traffic to be ready for.")] = 0.0,
    spare: Annotated[int, typer.Option(help="Machines that may fail at the peak.")] = 0,
    balancer: Annotated[
        list[str] | None, typer.Option(help="To compare; several: give it again.")
    ] = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.experiments.plan import BALANCERS, plan

    found = fleet_file.read(file)
    demand = _demand(file, found, qps, peak, growth, spare)
    offers = [_offer(part, found, Path(file).parent) for part in found.kind]
    files.check_target("--json", json_file)
    folder = files.new_folder(out, NAME, demand.model)
    console = show.console(json_file)
    asked = f"{demand.planned_qps:,.0f} queries/s of {demand.model} at {demand.sla}"
    console.print(f"{asked}, all simulated", markup=False)
    answer = plan(
        demand, offers, balancer or BALANCERS, seed=seed, file=fleet_file.described(found),
        on_answer=lambda answer: console.print(_line(answer), markup=False),
    )  # fmt: skip
    report = files.write(answer, folder, json_file)
    console.print(_table(answer))
    console.print(f"\n{answer.verdict}", style="bold", markup=False, soft_wrap=True)
    console.print(f"report: {report}", markup=False)
    return 0 if answer.chosen else 1


def _demand(
    path: str,
    file: fleet_file.FleetFile,
    qps: float | None,
    peak: float,
    growth: float,
    spare: int,
) -> Demand:
    from deeprecsys.experiments.plan import Demand

    opt.positive("--qps", qps)
    opt.positive("--peak", peak)
    if len(file.model) > 1:
        raise UserError("a plan is of one model: leave one [[model]] in the file")
    model = file.model[0]
    mean = qps if qps is not None else model.qps
    if mean is None:
        raise UserError(f"how much traffic? give --qps, or qps of model {model.name} in {path}")
    return Demand(model.name, mean * peak, model.sla, model.sizes, growth, spare,
                  model.whole, model.most_items)  # fmt: skip


def _offer(part: fleet_file.KindPart, file: fleet_file.FleetFile, folder: Path) -> Offer:
    from deeprecsys.experiments.plan import Offer

    stated = None
    if part.batch_size is not None:
        stated = fleet_file.stated_policy(part, file.model[0])
    kind = fleet_file.kind_of(part, file, folder)
    return Offer(kind, part.cost, part.watts, part.most, stated)


def _line(answer: Answer) -> str:
    name = answer.offer.kind.name
    if answer.policy is None:
        idle = f"; an idle machine gives {show.ms(answer.idle_s)} ms" if answer.idle_s else ""
        return f"{name}: no rate holds the target{idle}"
    if answer.fleet_qps is None:
        return f"{name}, {answer.balancer}: no rate holds the target in a fleet"
    return (
        f"{name}, {answer.balancer}: {show.rate(answer.fleet_qps)} queries/s a machine "
        f"(alone {show.rate(answer.single_qps)}), {answer.machines:,} machines"
    )


def _table(answer: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kind", "balancer", "policy", "queries/s a machine", "machines", "busy", "cost",
                 "kW"):  # fmt: skip
        table.add_column(
            name, justify="left" if name in ("kind", "balancer", "policy") else "right"
        )
    for a in answer.answers:
        chosen = any(a.offer is c.offer and a.balancer == c.balancer for c in answer.chosen)
        table.add_row(
            a.offer.kind.name, a.balancer, str(a.policy or "–"), show.rate(a.fleet_qps),
            f"{a.machines:,}" if a.machines else "–", f"{a.busy:.0%}" if a.busy else "–",
            f"{a.cost:,.0f}" if a.cost is not None else "–",
            f"{a.watts / 1e3:,.1f}" if a.watts is not None else "–",
            style="bold green" if chosen else None,
        )  # fmt: skip
    return table
