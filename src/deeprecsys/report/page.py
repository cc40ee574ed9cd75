"""The report as one HTML page: the verdict first, then figures, trials, and where it comes from.

Self-contained: style, data and the installed package's plotly.js are in the file; it opens
offline, in light and dark, on a phone and in print. Everything from a summary is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from deeprecsys.core import Records, Requests
from deeprecsys.report import figures, text

# The browser itself refuses whatever would leave the file, and says so on its console.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

Fact = tuple[str, ...]  # name, value, remarks
Section = tuple[str, str, figures.Figure | None]  # heading, what it shows, figure


def page(summary: dict[str, Any], records: Records | None, requests: Requests | None = None) -> str:
    """The whole document."""
    return document(_title(summary), _body(summary, records, requests))


def glance(
    summary: dict[str, Any], records: Records | None, requests: Requests | None = None
) -> str:
    """The head and the first figure alone."""
    head, *rest = _body(summary, records, requests)
    figure = next((p for p in rest if isinstance(p, tuple) and p[2] is not None), "")
    return document(_title(summary), [head, figure])


def _title(summary: dict[str, Any]) -> str:
    return f"{summary['verb']} {_subject(summary)}"


def _body(summary: dict[str, Any], records: Records | None, requests: Requests | None) -> list[Any]:
    """Its parts: head first, then sections and tables."""
    bodies = {"tune": _tune, "bench": _bench, "profile": _profile, "plan": _plan}
    bodies["simulate"] = next(
        (body for key, body in (("trials", _tune), ("fleet", _fleet), ("paper", _paper))
         if key in summary), _bench)  # fmt: skip
    bodies["load"] = _capacity if "trials" in summary else _bench
    return bodies[summary["verb"]](summary, records, requests)


def _tune(summary: dict[str, Any], records: Records | None, requests: Requests | None) -> list[Any]:
    best, sla = summary.get("best"), summary["sla"]
    facts: list[Fact] = [("target", text.target(sla)), ("method", summary.get("method", "–"))]
    facts += _used(summary)
    if best:
        capacity = best["capacity"]
        bounds = text.interval(capacity["interval_qps"], text.rate)
        facts = [
            ("capacity", f"{text.rate(capacity['rate_qps'])} queries/s", bounds),
            ("policy", text.policy(best["policy"]), "items a request"),
            *_ratios(summary),
            *facts,
        ]
    return [
        _head(summary, summary.get("verdict", ""), facts, summary.get("binds")),
        ("Capacity by batch size",
         "Highest rate that holds the target; bars are brackets of the search, or 95 % intervals "
         "where rounds were run.", figures.capacity_by_batch(summary)),
        ("Capacity over both knobs", "Every policy that was tried; a brighter one holds more.",
         figures.capacity_over_both(summary)),
        ("Capacity by offload threshold", "Dotted: the best that the cores reach alone.",
         figures.capacity_by_threshold(summary)),
        ("Latency by rate", "The best policy's runs: filled meets, open undecided, cross misses.",
         figures.latency_by_rate(summary)),
        *_of_records(summary, records, _which(summary.get("shown"))),
        *_of_requests(summary, records, requests),
        _trials(summary),
        _provenance(summary),
    ]  # fmt: skip


def _which(shown: dict[str, Any] | None) -> str:
    """Of which run the pictures are, and whether it held."""
    if not shown:
        return "The best policy, near its capacity."
    word = "held" if shown["held"] else "missed"
    return (
        f"The best policy in a fresh run at {text.rate(shown['rate_qps'])} queries/s, just below "
        f"its capacity, which {word} the target."
    )


def _bench(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> list[Any]:
    meets = text.meets(summary.get("meets_sla"))
    verdict = (
        f"{text.policy(summary['policy'])} at {text.rate(summary['rate_qps'])} queries/s: "
        f"p95 {text.ms(summary['p95_s'])} ms {text.interval(summary['p95_interval_s'], text.ms)}"
    )
    if summary["sla"]:
        verdict += f"; {meets} {text.target(summary['sla'])}"
    facts: list[Fact] = [
        ("throughput", f"{text.rate(summary['throughput_qps'])} queries/s"),
        *[(f"p{p}", f"{text.ms(summary.get(f'p{p}_s'))} ms",
           text.interval(summary.get(f"p{p}_interval_s"), text.ms)) for p in (50, 95, 99)],
        ("generator lag p99", f"{text.ms(summary.get('generator_lag_p99_s'))} ms"),
        *_used(summary),
        *_of_client(summary),
    ]  # fmt: skip
    over = ("Latency over time", "Every query at its arrival.",
            figures.latency_over_time(summary, records))  # fmt: skip
    return [
        _head(summary, verdict, facts, None),
        *_of_records(summary, records, ""),
        *_of_requests(summary, records, requests),
        over,
        _provenance(summary),
    ]


def _capacity(summary: dict[str, Any], records: Records | None, *_: Any) -> list[Any]:
    capacity = summary["capacity"]
    bounds = text.interval(capacity["interval_qps"], text.rate)
    facts: list[Fact] = [
        ("capacity", f"{text.rate(capacity['rate_qps'])} queries/s", bounds),
        ("target", text.target(summary["sla"])),
        *_of_client(summary),
    ]
    return [
        _head(summary, summary["verdict"], facts, None),
        ("Latency by rate", "Every run: filled meets, open undecided, cross misses.",
         figures.latency_by_rate(summary)),
        *_of_records(summary, records, "The run nearest the capacity."),
        _trials(summary),
        _provenance(summary),
    ]  # fmt: skip


def _of_client(summary: dict[str, Any]) -> list[Fact]:
    """What the load cost the machine that sent it, and what was answered."""
    client = summary.get("client")
    if not client:
        return []
    answers = ", ".join(f"{n:,} of {status}" for status, n in client["by_status"].items())
    facts: list[Fact] = [
        ("client", f"{client['core_share']:.0%} of a core", f"{client['cpu_s']:.2f} CPU seconds"),
        ("answers", answers or "none"),
    ]
    if client["unanswered"]:
        facts.append(("unanswered", f"{client['unanswered']:,}", client["examples"]["unanswered"]))
    return facts


def _of_requests(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> tuple[Section, Section]:
    if records is not None and requests is not None and len(requests):
        records = records[: int(requests.query.max()) + 1]  # of a simulation, the first ones
    return (
        (
            "Where the time goes",
            "Of queries around the median, and around p95: until the first request begins, until "
            "the last one begins, and the last one.",
            figures.time_parts(summary, records, requests),
        ),
        (
            "Queue and workers over time",
            "Items that wait, and workers that execute.",
            figures.load_over_time(records, requests),
        ),
    )


def _profile(summary: dict[str, Any], *_: Any) -> list[Any]:
    points = summary["points"]
    full = [row for row in points if row["busy"] == summary["workers"]]
    best = max(full or points, key=lambda row: float(row["items_per_s"]), default=None)
    verdict = f"{summary['model']}: nothing was measured"
    facts: list[Fact] = []
    if best:
        verdict = (
            f"{summary['model']}: {text.rate(best['items_per_s'])} items/s at batch size "
            f"{best['batch_size']} with {best['busy']} workers busy"
        )
        facts = [
            ("of this machine's limits", f"{best['limits_share']:.0%}", "at that batch size"),
            ("request of 1", f"{text.ms(min(r['median_s'] for r in points))} ms", "median"),
        ]
    return [
        _head(summary, verdict, facts, None),
        ("Service time by batch size", "Median seconds of one request, and p5 to p95, by the "
         "number of workers busy at the same time.", figures.service_time(summary)),
        ("Items per second by batch size", "All busy workers together; dashed: what the measured "
         "limits of this machine allow, rows being uniformly random: popular ones come from the "
         "cache, so a model can pass it.", figures.items_per_s(summary)),
        ("Operators", "Share of a request's time, eager, one thread; beside it the paper's plot.",
         figures.operator_shares(summary)),
        ("Roofline", "Arithmetic a byte against arithmetic per second, by batch size; the roofs "
         "are measured.", figures.roofline(summary)),
        _provenance(summary),
    ]  # fmt: skip


def _fleet(summary: dict[str, Any], *_: Any) -> list[Any]:
    fleet = summary["fleet"]
    facts: list[Fact] = [
        ("machines", f"{fleet['machines']:,}", f"{fleet['cores']:,} cores"),
        ("balancer", fleet["balancer"]),
        ("queries", f"{summary['queries']:,}", f"in {fleet['seconds']:g} s"),
        *[(model["name"], f"p95 {text.ms(model['p95_s'])} ms", text.meets(model["meets_sla"]),
           text.target(model["sla"])) for model in summary["models"]],
        *[(f"{name}, busy", f"{max(share):.0%}", "at most") for name, share
          in summary["busy"].items()],
        ("retried", f"{summary['retried']:,}", f"{summary['unserved']:,} found no machine"),
    ]  # fmt: skip
    return [
        _head(summary, summary["verdict"], facts, None),
        ("Load over the day", "Queries that arrive each second.", figures.fleet_load(summary)),
        *[(f"Latency over the day, {model['name']}", "Of the queries that arrive in a stretch.",
           figures.fleet_latency(summary, model)) for model in summary["models"]],
        ("Utilisation by kind", "Share of the time at work, of cores and of accelerators.",
         figures.fleet_busy(summary)),
        _provenance(summary),
    ]  # fmt: skip


def _plan(summary: dict[str, Any], *_: Any) -> list[Any]:
    facts: list[Fact] = [
        ("traffic", f"{text.rate(summary['planned_qps'])} queries/s", "with growth"),
        ("target", text.target(summary["sla"])),
        *[(f"{a['kind']}, {a['balancer']}", f"{a['machines']:,} machines",
           text.policy(a["policy"])) for a in summary["chosen"]],
        ("machines to spare", str(summary["spare"])),
    ]  # fmt: skip
    heads = ("kind", "balancer", "policy", "queries/s a machine", "alone", "machines", "busy",
             "cost", "kW", "bound by")  # fmt: skip
    rows = [[a["kind"], a["balancer"], text.policy(a["policy"]) if a["policy"] else "–",
             text.rate(a["fleet_qps"]), text.rate(a["single_qps"] or None),
             f"{a['machines']:,}" if a["machines"] else "–",
             f"{a['busy']:.0%}" if a["busy"] else "–",
             f"{a['cost']:,.0f}" if a["cost"] is not None else "–",
             f"{a['watts'] / 1e3:,.1f}" if a["watts"] is not None else "–", a["binds"]]
            for a in summary["answers"]]  # fmt: skip
    return [
        _head(summary | {"simulated": {"assumptions": summary["assumptions"]}},
              summary["verdict"], facts, None),
        ("Machines needed", "Of each kind alone, behind each balancer.",
         figures.machines_needed(summary)),
        _table("Every kind behind every balancer", heads, rows),
        _provenance(summary),
    ]  # fmt: skip


def _paper(summary: dict[str, Any], *_: Any) -> list[Any]:
    rows = [[row["what"], row["paper"], row["ours"]] for row in summary["rows"]]
    facts: list[Fact] = [
        ("workers", str(summary["workers"])),
        ("target", text.target(summary["sla"])),
    ]
    verdict = f"{rows[0][0]}: {rows[0][2]}; the paper: {rows[0][1]}"
    return [
        _head(summary, verdict, facts, None),
        _table("Beside the paper", ("what", "the paper", "simulated"), rows),
        _provenance(summary),
    ]


def _table(heading: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<section><h2>{escape(heading)}</h2><div class=wide><table><tr>{head}</tr>{body}</table>"
        "</div></section>"
    )


def _of_records(
    summary: dict[str, Any], records: Records | None, which: str
) -> tuple[Section, Section]:
    spread = "Median, quartiles, and whiskers from p5 to p95."
    tail = "Share of the queries slower than a latency."
    return (
        (
            "Latency distribution",
            f"{which} {tail}".strip(),
            figures.latency_distribution(summary, records),
        ),
        (
            "Latency by query size",
            f"{which} {spread}".strip(),
            figures.latency_by_size(summary, records),
        ),
    )


def _ratios(summary: dict[str, Any]) -> list[Fact]:
    best = summary["best"]["policy"]
    return [
        (f"over {c['name']} of {c['policy']['batch_size']}", *_split(text.ratio(c)))
        for c in summary.get("comparisons", [])
        if c["policy"] != best
    ]


def _used(summary: dict[str, Any]) -> list[Fact]:
    """Accelerators, how busy everything was, and the energy."""
    facts: list[Fact] = []
    found = summary.get("usage") or {}
    for device in found.get("accelerators", []):
        name = f"{device['name']}, emulated" if device["emulated"] else device["name"]
        queries, items = device["share_of_queries"], device["share_of_items"]
        share = f"{queries:.0%} of queries, {items:.0%} of items"
        facts.append((name, f"{device['busy']:.0%} busy", share))
    energy = found.get("energy", {})
    if found:
        facts.append(("workers", f"{found['cores_busy']:.0%} busy"))
    if energy.get("queries_per_joule"):
        modelled = ", ".join(energy["modelled"])
        note = f"modelled: {modelled}; {energy['model']}" if modelled else "measured"
        facts.append(("queries/s per watt", f"{energy['queries_per_joule']:.3g}", note))
    facts += [("failed", line) for line in summary.get("lost", [])]
    return facts


def _split(words: str) -> tuple[str, ...]:
    first, _, rest = words.partition(" ")
    return (first, rest) if first.endswith("×") else (words,)


def _head(summary: dict[str, Any], verdict: str, facts: Sequence[Fact], binds: str | None) -> str:
    cards = "".join(
        f"<div class=card><dt>{escape(name)}</dt><dd>{escape(value)}"
        f"<small>{escape(' '.join(rest))}</small></dd></div>"
        for name, value, *rest in facts
    )
    stopped = "<p class=note>Interrupted: what was measured until then.</p>"
    what = f"{summary['verb']} · {_subject(summary)}"
    scale = summary.get("scale", 1)
    if scale != 1:
        what += f" · tables scaled by {scale:g}"
    return (
        f"<header><p class=kicker>deeprecsys · {escape(what)}</p><h1>{escape(verdict)}</h1>"
        f"{stopped if summary.get('interrupted') else ''}<dl class=cards>{cards}</dl>"
        f"{f'<p class=binds>What binds: {escape(binds)}.</p>' if binds else ''}"
        f"{_taken_for_granted(summary)}</header>"
    )


def _subject(summary: dict[str, Any]) -> str:
    """What was run: a model, or a law of service times."""
    return str(summary.get("model") or (summary.get("simulated") or {}).get("service", ""))


def _taken_for_granted(summary: dict[str, Any]) -> str:
    """Every number of a simulation rests on these."""
    said = (summary.get("simulated") or {}).get("assumptions")
    return f"<p class=note>Simulated: {escape('; '.join(said))}.</p>" if said else ""


def _trials(summary: dict[str, Any]) -> str:
    best = (summary.get("best") or {}).get("policy")
    rows = "".join(_trial(t, t["policy"] == best) for t in summary["trials"])
    return (
        "<section><h2>Trials</h2><p>Every policy that was tried; open a row for its runs.</p>"
        f"<div class=trials>{rows}</div></section>"
    )


def _trial(trial: dict[str, Any], best: bool) -> str:
    capacity = trial["capacity"]
    doubt = "" if capacity.get("decided", True) else " · undecided"
    head = (
        f"<b>{escape(text.policy(trial['policy']))}</b>"
        f"<span>{text.rate(capacity['rate_qps'])} queries/s "
        f"{text.interval(capacity['interval_qps'], text.rate)}{doubt}</span>"
        f"<span>{len(trial['runs'])} runs{' · best' if best else ''}</span>"
    )
    names = ("queries/s", "p50 ms", "p95 ms", "95 % interval", "target", "queries", "s",
             "lag p99 ms", "seed")  # fmt: skip
    heads = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_run(run) for run in trial["runs"])
    return (
        f"<details{' class=best' if best else ''}><summary>{head}</summary>"
        f"<div class=wide><table><tr>{heads}</tr>{rows}</table></div></details>"
    )


def _run(run: dict[str, Any]) -> str:
    early = " early" if run.get("stopped_early") else ""
    others = run.get("disturbance") or 0
    note = f" ({others:.0%} of the cores used by others)" if others >= 0.05 else ""
    cells = (
        text.rate(run["rate_qps"]),
        text.ms(run.get("p50_s")),
        text.ms(run.get("p95_s")),
        text.interval(run.get("p95_interval_s"), text.ms),
        text.meets(run.get("meets_sla")) + note,
        f"{run['queries']:,}",
        f"{run['duration_s']:.1f}{early}",
        text.ms(run.get("generator_lag_p99_s")),
        str(run.get("seed", "")),
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _provenance(summary: dict[str, Any]) -> str:
    """Machine, versions, workload, seed, and the command that repeats it."""
    notes = summary.get("workload", {}).get("notes", {})
    machine = {k: v for k, v in summary.get("machine", {}).items() if v is not None}
    for name in ("last_level_cache_bytes", "memory_bytes"):
        if name in machine:
            machine[name] = f"{machine[name] / 2**20:,.0f} MiB"
    groups = {
        "Machine": machine,
        "Versions": summary.get("versions", {}),
        "Workload": {**notes, "seed": summary.get("seed")},
        "Set-up": {
            "server": (summary.get("server") or {}).get("url"),
            "workers": summary.get("workers"),
            "runtime": summary.get("runtime") or summary.get("engine", {}).get("runtime"),
            "variant": summary.get("variant"),
            "user's inputs": "once a query" if summary.get("query_inputs") else None,
            "date": summary.get("date"),
            "inputs": "; ".join(map(_pool, summary.get("input_pools", {}).values())) or None,
            "assumed of the inputs": "; ".join(summary.get("assumptions", [])) or None,
        },
    }
    lists = "".join(
        f"<div><h3>{title}</h3><dl>"
        + "".join(f"<dt>{escape(str(k).replace('_', ' '))}</dt><dd>{escape(str(v))}</dd>"
                  for k, v in group.items() if v is not None)
        + "</dl></div>"
        for title, group in groups.items()
    )  # fmt: skip
    command = escape(summary.get("command", ""))
    return (
        f"<section><h2>Where this comes from</h2><div class=facts>{lists}</div>"
        f"<p>To repeat it:</p><pre>{command}</pre></section>"
    )


def _pool(pool: dict[str, Any]) -> str:
    every = ", every row of the tables" if pool.get("every_row") else ""
    users = f" of {pool['users']:,} users" if pool.get("users", 1) > 1 else ""
    touched = f"{pool['touched_bytes'] / 2**20:,.0f} MiB"
    return f"pool of {pool['items']:,} items{users} touching {touched}{every}"


def document(title: str, body: Sequence[Any]) -> str:
    """A page of parts: HTML, or sections with a figure; sections without one are left out."""
    shown = [part[2] for part in body if isinstance(part, tuple) and part[2] is not None]
    style = (files("deeprecsys.report") / "style.css").read_text(encoding="utf-8")
    script = (files("deeprecsys.report") / "page.js").read_text(encoding="utf-8")
    numbers = iter(range(len(shown)))
    html = "".join(part if isinstance(part, str) else _section(part, numbers) for part in body)
    # No "<" in the script: a name from the summary must not end it.
    data = json.dumps(shown, allow_nan=False).replace("<", "\\u003c")
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"<link rel=icon href='data:,'><title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{html}</main><script>{_plotly()}</script>"
        f"<script>const FIGURES = {data};\n{script}</script></body></html>\n"
    )


def _section(section: Section, numbers: Any) -> str:
    heading, caption, figure = section
    if figure is None:
        return ""
    return (
        f"<section><h2>{escape(heading)}</h2><p>{escape(caption)}</p>"
        f"<div class=figure id=figure-{next(numbers)}></div></section>"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
