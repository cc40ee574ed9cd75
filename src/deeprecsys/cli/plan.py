"""`plan`: how many machines of which kind a given traffic needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import Policy, UserError
from deeprecsys.fleet import file as fleet_file

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
    from deeprecsys.experiments.plan import Answer, Demand, plan

    found = fleet_file.read(file)
    opt.positive("--qps", qps)
    opt.positive("--peak", peak)
    if len(found.model) > 1:
        raise UserError("a plan is of one model: leave one [[model]] in the file")
    model = found.model[0]
    mean = qps if qps is not None else model.qps
    if mean is None:
        raise UserError(f"how much traffic? give --qps, or qps of model {model.name} in {file}")
    demand = Demand(model.name, mean * peak, model.sla, model.sizes, growth, spare)
    offers = [_offer(part, found, Path(file).parent) for part in found.kind]
    files.check_target("--json", json_file)
    folder = files.new_folder(out, NAME, model.name)
    console = show.console(json_file)

    def line(answer: Answer) -> None:
        console.print(_line(answer), markup=False)

    console.print(
        f"{demand.planned_qps:,.0f} queries/s of {model.name} at {demand.sla}, all simulated",
        markup=False,
    )
    balancers = balancer or ["two-choices", "least-queries", "random"]
    answer = plan(demand, offers, balancers, seed=seed, on_answer=line)
    summary: dict[str, Any] = {
        **files.provenance(NAME),
        "model": model.name,
        "seed": seed,
        "sla": {"percentile": demand.sla.percentile, "latency_s": demand.sla.latency_s},
        "peak_qps": demand.peak_qps,
        "planned_qps": demand.planned_qps,
        "spare": spare,
        "file": fleet_file.described(found),
        "answers": [a.to_dict() for a in answer.answers],
        "chosen": [a.to_dict() for a in answer.chosen],
        "elapsed_s": answer.elapsed_s,
        "verdict": _verdict(demand, answer),
        "assumptions": _assumptions(offers, demand.model),
    }
    for chosen in answer.chosen:
        _write_policy(folder, chosen, summary)
    report = files.write_run(folder, summary, json_file)
    console.print(_table(answer))
    console.print(f"\n{summary['verdict']}", style="bold", markup=False)
    console.print(f"report: {report}", markup=False)
    return 0 if answer.chosen else 1


def _offer(part: fleet_file.KindPart, file: fleet_file.FleetFile, folder: Path) -> Any:
    from deeprecsys.experiments.plan import Offer

    stated = None
    if part.batch_size is not None:
        stated = Policy(
            part.batch_size, part.offload_threshold, offload_backlog=part.offload_backlog
        )
    kind = fleet_file.kind_of(part, file, folder)
    return Offer(kind, part.cost, part.watts, part.most, stated)


def _line(answer: Any) -> str:
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


def _verdict(demand: Any, answer: Any) -> str:
    if not answer.chosen:
        idle = [a.idle_s for a in answer.answers if a.idle_s]
        why = f"; an idle machine gives {show.ms(min(idle))} ms" if idle else ""
        able = any(a.fleet_qps for a in answer.answers)
        if able:
            why = "; with more machines than can be had: raise `most`"
        return f"no plan serves {demand.planned_qps:,.0f} queries/s at {demand.sla}{why}"
    parts = [
        f"{a.machines:,} × {a.offer.kind.name} ({a.policy}, {a.balancer}, "
        f"bound by {a.binds})" for a in answer.chosen
    ]  # fmt: skip
    said = f"simulated: {' and '.join(parts)} for {demand.planned_qps:,.0f} queries/s"
    if all(a.cost is not None for a in answer.chosen):
        said += f"; cost {sum(a.cost for a in answer.chosen):,.0f}"
    if all(a.watts is not None for a in answer.chosen):
        said += f"; {sum(a.watts for a in answer.chosen) / 1e3:,.1f} kW at the peak, as stated"
    return said


def _table(answer: Any) -> Table:
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


def _assumptions(offers: Any, model: str) -> list[str]:
    said = []
    for offer in offers:
        kind = offer.kind
        said += [f"{kind.name}: {s}" for s in kind.service[model].assumptions(kind.workers)]
        for device in kind.accelerators.get(model, ()):
            said.append(f"{kind.name}: {device.name} is emulated: {device.text}")
    return said


def _write_policy(folder: Path, chosen: Any, summary: dict[str, Any]) -> None:
    """What `serve --policy` takes, for each kind."""
    policy = {
        "policy": chosen.policy.to_dict(),
        "model": {"model": summary["model"]},
        "sla": summary["sla"],
        "machine": {"kind": chosen.offer.kind.name},
        "runtime": None,
    }
    (folder / f"policy-{chosen.offer.kind.name}.json").write_text(json.dumps(policy, indent=1))
