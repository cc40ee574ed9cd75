"""`compare`: two runs; is the second better, worse, or is that not known?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.folder import check_target, read_summary
from deeprecsys.core import UserError
from deeprecsys.report import text

NAME = "compare"
HELP = """Compare two runs of the same verb: capacities of two tunings, latencies of two benches.

Exit code 1 if the second is significantly worse.

Example: deeprecsys compare runs/A runs/B
"""
_FACTS = ("model", "variant", "scale", "query_inputs", "sla", "workload", "workers", "machine",
          "versions")  # fmt: skip


def run(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another's.")],
    json_file: opt.JsonFile = None,
) -> int:
    check_target("--json", json_file)
    one, two = read_summary(first), read_summary(second)
    if one["verb"] != two["verb"]:
        raise UserError(
            f"{first} is of {one['verb']} and {second} of {two['verb']}: compare two of one verb"
        )
    result = compare(one, two)
    console = show.console(json_file)
    for name in result["differs"]:
        console.print(f"they differ in {name}", markup=False)
    console.print(_sentence(result), style="bold", markup=False)
    if json_file:
        text = json.dumps(result, indent=1)
        print(text) if json_file == "-" else Path(json_file).write_text(text + "\n")
    return 1 if result["significant"] and result["worse"] else 0


def compare(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Second over first. Capacities by the ends of their intervals, which are bounds and not
    errors, so the ratio's are their extremes; percentiles by their standard errors in the log."""
    (what, a), (other, b) = _found(one), _found(two)
    if what != other:
        raise UserError(f"one run has a {what}, the other a {other}: compare two of one kind")
    tuning = what == "capacity"
    ratio, interval = _extremes(a, b) if tuning else _quadrature(a, b)
    lo, hi = interval
    significant = (lo is not None and lo > 1) or (hi is not None and hi < 1)
    worse = ratio is not None and (ratio < 1 if tuning else ratio > 1)
    more = None if tuning or significant else _longer(one, two, ratio, interval)
    return {
        "what": what,
        "first": a[0],
        "second": b[0],
        "ratio": ratio,
        "interval": [lo, hi],
        "significant": significant,
        "worse": worse,
        "enough_queries": more,
        "enough_s": more and _enough_s(more, one, two),
        # Summaries from before there were query inputs say nothing of them: there were none.
        "differs": [
            *(name for name in _FACTS if one.get(name, False) != two.get(name, False)),
            *(["execution"] if text.execution(one) != text.execution(two) else []),
        ],
    }


Estimate = tuple[float | None, float | None, float | None]  # value, low, high
Interval = tuple[float | None, float | None]
Bounds = tuple[float | None, Interval]
# Nobody waits for a run that would tell a difference of less than 1 % from none.
_ALIKE = 0.01


def _found(summary: dict[str, Any]) -> tuple[str, Estimate]:
    """What a run found that can be compared; UserError if that is nothing."""
    if "best" in summary:
        return "capacity", _capacity((summary["best"] or {}).get("capacity"))
    if "capacity" in summary:
        return "capacity", _capacity(summary["capacity"])
    if "p95_interval_s" in summary:
        return "p95 latency", (summary["p95_s"], *summary["p95_interval_s"])
    raise UserError(f"a run of {summary['verb']} has neither a capacity nor latencies to compare")


def _capacity(found: dict[str, Any] | None) -> Estimate:
    return (found["rate_qps"], *found["interval_qps"]) if found else (0.0, 0.0, 0.0)


def _extremes(a: Estimate, b: Estimate) -> Bounds:
    def over(x: float | None, y: float | None) -> float | None:
        return x / y if x is not None and y else None

    return over(b[0], a[0]), (over(b[1], a[2]), over(b[2], a[1]))


def _quadrature(a: Estimate, b: Estimate) -> Bounds:
    if not a[0] or not b[0]:
        return None, (None, None)
    ratio = b[0] / a[0]
    if not (a[1] and a[2] and b[1] and b[2]):
        return ratio, (None, None)
    reach = math.hypot(math.log(a[2] / a[1]) / 2, math.log(b[2] / b[1]) / 2)
    return ratio, (ratio * math.exp(-reach), ratio * math.exp(reach))


def _longer(
    one: dict[str, Any], two: dict[str, Any], ratio: float | None, interval: Interval
) -> int | None:
    """Queries of about as long a run as would decide: where a percentile has no upper bound, the
    length that gives it one, as the run itself said; else that at which a ratio like this one would
    be out of doubt, its error falling with the square root. None where nothing can be said."""
    least = [int(run["enough_queries"]) for run in (one, two) if run.get("enough_queries")]
    if least:
        return max(least)
    if ratio is None or interval[0] is None or abs(math.log(ratio)) < _ALIKE:
        return None
    reach = math.log(ratio / interval[0])
    queries = max(int(run.get("queries", 0)) for run in (one, two))
    return math.ceil(queries * float(reach / math.log(ratio)) ** 2) or None


def _enough_s(queries: int, *runs: dict[str, Any]) -> float | None:
    """How long that takes at the slower of the two rates."""
    rates = [run["rate_qps"] for run in runs if run.get("rate_qps")]
    return queries / min(rates) if rates else None


def _sentence(result: dict[str, Any]) -> str:
    capacity = result["what"] == "capacity"
    first, second = (
        f"{show.rate(v)} queries/s" if capacity else f"{show.ms(v)} ms"
        for v in (result["first"], result["second"])
    )
    lo, hi = (f"{v:.2f}" if v is not None else "–" for v in result["interval"])
    ratio = f"{result['ratio']:.2f}×" if result["ratio"] is not None else "no ratio"
    doubt = "significant" if result["significant"] else "not significant"
    said = f"{result['what']}: {first} → {second}, {ratio} [{lo}, {hi}], {doubt}"
    if not result["enough_queries"]:
        return said
    rate = result["enough_s"] and result["enough_queries"] / result["enough_s"]
    return f"{said}; two runs of about {text.about(result['enough_queries'], rate)} could tell"
