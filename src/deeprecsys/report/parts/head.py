"""The head of a page: what was run, the verdict, cards of facts, what binds, what is assumed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from deeprecsys.report import text

Fact = tuple[str, ...]  # name, value, remarks


def head(
    summary: dict[str, Any], verdict: str, facts: Sequence[Fact], binds: str | None = None
) -> str:
    stopped = "<p class=note>Interrupted: what was measured until then.</p>"
    answer, _, more = verdict.partition("; ")
    return (
        f"<header><p class=kicker>deeprecsys · {escape(_what(summary))}</p>"
        f"<h1>{escape(answer)}</h1>"
        f"{f'<p class=more>{escape(more)}</p>' if more else ''}"
        f"{stopped if summary.get('interrupted') else ''}"
        f"<dl class=cards>{''.join(map(_card, facts))}</dl>"
        f"{f'<p class=binds>What binds: {escape(binds)}.</p>' if binds else ''}"
        f"{_taken_for_granted(summary)}</header>"
    )


def subject(summary: dict[str, Any]) -> str:
    """What was run: a model, or a law of service times."""
    return str(summary.get("model") or (summary.get("simulated") or {}).get("service", ""))


def _what(summary: dict[str, Any]) -> str:
    scale = summary.get("scale", 1)
    scaled = f" · tables scaled by {scale:g}" if scale != 1 else ""
    return f"{summary['verb']} · {subject(summary)}{scaled}"


def _card(fact: Fact) -> str:
    name, value, *rest = fact
    return (
        f"<div class=card><dt>{escape(name)}</dt><dd>{escape(value)}"
        f"<small>{escape(' '.join(rest))}</small></dd></div>"
    )


def _taken_for_granted(summary: dict[str, Any]) -> str:
    """Every number of a simulation rests on these."""
    said = (summary.get("simulated") or {}).get("assumptions")
    return f"<p class=note>Simulated: {escape('; '.join(said))}.</p>" if said else ""


def capacity_fact(capacity: dict[str, Any]) -> Fact:
    bounds = text.interval(capacity["interval_qps"], text.rate)
    return "capacity", f"{text.rate(capacity['rate_qps'])} queries/s", bounds


def used(summary: dict[str, Any]) -> list[Fact]:
    """Accelerators, how busy everything was, the energy, and which devices were lost."""
    found = summary.get("usage") or {}
    facts = [_accelerator(device) for device in found.get("accelerators", [])]
    if found:
        facts.append(("workers", f"{found['cores_busy']:.0%} busy"))
    facts += _energy(found.get("energy", {}))
    return facts + [("failed", line) for line in summary.get("lost", [])]


def _accelerator(device: dict[str, Any]) -> Fact:
    name = f"{device['name']}, emulated" if device["emulated"] else device["name"]
    queries, items = device["share_of_queries"], device["share_of_items"]
    return name, f"{device['busy']:.0%} busy", f"{queries:.0%} of queries, {items:.0%} of items"


def _energy(energy: dict[str, Any]) -> list[Fact]:
    if not energy.get("queries_per_joule"):
        return []
    modelled = ", ".join(energy["modelled"])
    note = f"modelled: {modelled}; {energy['model']}" if modelled else "measured"
    return [("queries/s per watt", f"{energy['queries_per_joule']:.3g}", note)]


def client(summary: dict[str, Any]) -> list[Fact]:
    """What the load cost the machine that sent it, and what was answered."""
    found = summary.get("client")
    if not found:
        return []
    answers = ", ".join(f"{n:,} × {status}" for status, n in sorted(found["by_status"].items()))
    facts: list[Fact] = [
        ("client", f"{found['core_share']:.0%} of a core", f"{found['cpu_s']:.2f} CPU seconds"),
        ("answers", answers or "none"),
    ]
    if found["unanswered"]:
        facts.append(("unanswered", f"{found['unanswered']:,}", found["examples"]["unanswered"]))
    return facts
