"""`simulate --fleet FILE`: a fleet's day; load, percentiles and utilisation over it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from deeprecsys.cli import folder as files
from deeprecsys.cli import show
from deeprecsys.cli.options import SimulationRequest
from deeprecsys.core import UserError
from deeprecsys.fleet import file as fleet_file

STRETCHES = 96
_ROWS = 12  # of the table in the terminal


def run(request: SimulationRequest, path: str) -> int:
    file = fleet_file.read(path)
    folder_of = Path(path).parent
    fleet = fleet_file.fleet_of(file, folder_of, request.seed)
    mix = fleet_file.mix_of(file, request.seed)
    if mix.shares[0].model not in fleet.models:
        raise UserError(f"no kind serves {mix.shares[0].model}")
    files.check_target("--json", request.json_file)
    folder = files.new_folder(request.out, "simulate", "fleet")
    console = show.console(request.json_file)
    seconds = file.day.seconds
    console.print(
        f"{fleet.machines:,} machines, {fleet.workers:,} cores, {file.balancer}; "
        f"{mix.qps:,.0f} queries/s on average for {seconds:g} s, simulated", markup=False,
    )  # fmt: skip
    began = time.monotonic()
    order = [fleet.models.index(share.model) for share in mix.shares]
    pieces = ((piece, np.array(order)[model]) for piece, model in mix.pieces(seconds))
    day = fleet.stream(pieces, seconds, STRETCHES)
    slas = {model.name: model.sla for model in file.model}
    summary = {
        **files.provenance("simulate"),
        "model": None,
        "seed": request.seed,
        "sla": None,
        "fleet": {
            "file": fleet_file.described(file),
            "machines": fleet.machines,
            "cores": fleet.workers,
            "balancer": file.balancer,
            "seconds": seconds,
        },
        "workload": {"notes": {"arrivals": file.arrivals, "models": ", ".join(fleet.models)}},
        "simulated": {"service": "a fleet", "assumptions": _assumptions(fleet)},
        **_counted(day, slas),
        "elapsed_s": time.monotonic() - began,
    }
    summary["verdict"] = _verdict(summary)
    report = files.write_run(folder, summary, request.json_file)
    console.print(_table(summary))
    console.print(f"\n{summary['verdict']}", style="bold", markup=False)
    console.print(f"report: {report}", markup=False)
    missed = any(m["meets_sla"] is False for m in summary["models"])
    return 1 if missed or day.overloaded else 0


def _counted(day: Any, slas: dict[str, Any]) -> dict[str, Any]:
    fleet = day.fleet
    models = []
    for i, name in enumerate(fleet.models):
        sla = slas[name]
        found = {f"p{p}_s": day.percentile_s(p, i) for p in (50, 95, 99)}
        reached = day.percentile_s(sla.percentile, i)
        models.append({
            "name": name,
            "queries": int(day.counts.latency[:, i].sum()),
            "sla": {"percentile": sla.percentile, "latency_s": sla.latency_s},
            **found,
            "meets_sla": None if math.isnan(reached) else bool(
                reached <= sla.latency_s and not day.unserved and not day.overloaded
            ),
            "over_time": {f"p{p}_s": day.percentiles_s(p, i) for p in (50, 95, 99)},
        })  # fmt: skip
    stretches = len(day.counts.latency)
    return {
        "queries": day.queries,
        "retried": day.retried,
        "unserved": day.unserved,
        "overloaded": day.overloaded,
        "models": models,
        "time_s": [(i + 0.5) * day.counts.stretch_s for i in range(stretches)],
        "rate_qps": day.rates_qps().tolist(),
        "busy": {name: share.tolist() for name, share in day.busy().items()},
        "devices_busy": {name: share.tolist() for name, share in day.devices_busy().items()},
    }


def _verdict(summary: dict[str, Any]) -> str:
    said = []
    for model in summary["models"]:
        sla = model["sla"]
        word = {True: "meets", False: "misses", None: "undecided"}[model["meets_sla"]]
        said.append(
            f"{model['name']}: p95 {show.ms(model['p95_s'])} ms, p99 {show.ms(model['p99_s'])} ms "
            f"over the day, {word} p{sla['percentile']:g} ≤ {sla['latency_s'] * 1e3:g} ms"
        )
    if summary["overloaded"]:
        said.append("overloaded: ended early, the backlog grew without end")
    if summary["retried"]:
        said.append(f"{summary['retried']:,} queries retried after failures")
    if summary["unserved"]:
        said.append(f"{summary['unserved']:,} queries found no machine up")
    return "simulated: " + "; ".join(said)


def _table(summary: dict[str, Any]) -> Table:
    """Every few stretches of the day."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    kinds = list(summary["busy"])
    for name in ("time s", "queries/s", "p50 ms", "p95 ms", "p99 ms", *kinds):
        table.add_column(name, justify="right")
    first = summary["models"][0]["over_time"]
    step = max(1, len(summary["time_s"]) // _ROWS)
    for i in range(step // 2, len(summary["time_s"]), step):
        table.add_row(
            f"{summary['time_s'][i]:,.0f}",
            f"{summary['rate_qps'][i]:,.0f}",
            *(show.ms(first[f"p{p}_s"][i]) for p in (50, 95, 99)),
            *(f"{summary['busy'][kind][i]:.0%}" for kind in kinds),
        )
    return table


def _assumptions(fleet: Any) -> list[str]:
    said = []
    for kind in fleet.kinds:
        for model in fleet.models:
            said += [f"{kind.name}: {s}" for s in kind.service[model].assumptions(kind.workers)]
            for device in kind.accelerators.get(model, ()):
                said.append(f"{kind.name}: {device.name} is emulated: {device.text}")
    return list(dict.fromkeys(said))
