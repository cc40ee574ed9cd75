"""`models`: the zoo, and whether this machine could meet each model's target at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deeprecsys.cli import inspect, show
from deeprecsys.cli import options as opt
from deeprecsys.cli.folder import check_target
from deeprecsys.cli.which import Own, which
from deeprecsys.core import Limits

NAME = "models"
HELP = """List the models: size, work, target, sources, and whether this machine can meet it.

"Can meet" is an estimate: the work of a p95 query of the production law, spread evenly over the
cores, against this machine's measured limits. `tune` measures.

Example: deeprecsys models --sources
"""


def run(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="One of them, or a path to your own.")
    ] = None,
    sources: Annotated[bool, typer.Option(help="Where each number is from.")] = False,
    variant: opt.Variant = "paper",
    scale: opt.Scale = 1.0,
    trust: opt.Trust = False,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.models import NAMES, get_spec

    check_target("--json", json_file)
    if model is not None and isinstance(which(model, trust=trust), Own):
        return inspect.run(model, trust=trust, json_file=json_file)
    specs = [get_spec(name, variant) for name in ([model] if model else NAMES)]
    for spec in specs:
        spec.check_scale(scale)
    limits = _limits()
    rows = [_row(spec, scale, limits) for spec in specs]
    console = show.console(json_file)
    console.print(_table(rows))
    if limits is None:
        console.print("torch is not installed: this machine's limits were not measured")
    if sources:
        for row in rows:
            console.print(f"\n{row['model']}", style="bold")
            for what, where in row["sources"]:
                console.print(f"  {what}: {where}", markup=False)
    if json_file:
        text = json.dumps(rows, indent=1)
        print(text) if json_file == "-" else Path(json_file).write_text(text + "\n")
    return 0


def _limits() -> Limits | None:
    try:
        from deeprecsys.engine.limits import measure_limits
        from deeprecsys.engine.topology import usable_cores
    except ModuleNotFoundError:
        return None
    return measure_limits(usable_cores())


def _row(spec: Any, scale: float, limits: Limits | None) -> dict[str, Any]:
    from deeprecsys.workload import parse_sizes

    law, work = parse_sizes("production"), spec.work()
    floor_s = None
    if limits is not None:
        rows = work.table_bytes / limits.lookup_bytes
        item_s = work.flops / limits.flops_per_s + rows / limits.lookups_per_s
        floor_s = law.percentile(95) * item_s
    return {
        "model": spec.name,
        "variant": spec.variant,
        "parameters": spec.parameters(scale),
        "memory_bytes": spec.memory_bytes(scale),
        "query_bytes": spec.bytes_per_query(round(law.mean)),
        "flops_per_item": work.flops,
        "operators": list(spec.operators),
        "target_s": spec.target.latency_s,
        "floor_p95_s": floor_s,
        "can_meet": None if floor_s is None else floor_s < spec.target.latency_s,
        "sources": [list(pair) for pair in spec.sources],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "parameters", "memory", "bytes a query", "operators", "p95 target",
                 "can meet"):  # fmt: skip
        left = name in ("model", "operators", "can meet")
        table.add_column(name, justify="left" if left else "right")
    words = {True: "yes", False: "no", None: "not measured"}
    for row in rows:
        floor = "" if row["floor_p95_s"] is None else f" (≥ {show.ms(row['floor_p95_s'])} ms)"
        table.add_row(
            row["model"],
            _short(row["parameters"]),
            f"{_short(row['memory_bytes'])}B",
            f"{_short(row['query_bytes'])}B",
            ", ".join(row["operators"]),
            f"{row['target_s'] * 1e3:g} ms",
            words[row["can_meet"]] + floor,
        )
    return table


def _short(value: float) -> str:
    """Three digits and a decimal prefix."""
    power = min(3, int(math.log10(max(value, 1)) // 3))
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G'][power]}"
