"""Where a result comes from: machine, versions, workload, seed, and the command that repeats it."""

from __future__ import annotations

from html import escape
from typing import Any

from deeprecsys.report import text


def origin(summary: dict[str, Any]) -> str:
    groups = {
        "Machine": _machine(summary.get("machine", {})),
        "Versions": summary.get("versions", {}),
        "Workload": {**summary.get("workload", {}).get("notes", {}), "seed": summary.get("seed")},
        "Set-up": _set_up(summary),
    }
    lists = "".join(_list(title, group) for title, group in groups.items())
    return (
        f"<section><h2>Where this comes from</h2><div class=facts>{lists}</div>"
        f"<p>To repeat it:</p><pre>{escape(summary.get('command', ''))}</pre></section>"
    )


def _list(title: str, group: dict[str, Any]) -> str:
    """A definition list; what is None is left out."""
    said = {str(k).replace("_", " "): str(v) for k, v in group.items() if v is not None}
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in said.items())
    return f"<div><h3>{title}</h3><dl>{lines}</dl></div>"


def _machine(machine: dict[str, Any]) -> dict[str, Any]:
    """Sizes in MiB, and so called."""
    return {
        name.removesuffix("_bytes"): _mib(value) if name.endswith("_bytes") and value else value
        for name, value in machine.items()
    }


def _set_up(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "server": (summary.get("server") or {}).get("url"),
        "workers": summary.get("workers"),
        "runtime": summary.get("runtime") or summary.get("engine", {}).get("runtime"),
        "execution": text.execution(summary),
        "variant": summary.get("variant"),
        "path": summary.get("path"),
        "form": summary.get("form"),
        "inputs from": summary.get("inputs_from"),
        "queries": "never cut" if summary.get("whole") else None,
        "user's inputs": "once a query" if summary.get("query_inputs") else None,
        "date": summary.get("date"),
        "inputs": "; ".join(map(_pool, summary.get("input_pools", {}).values())) or None,
        "assumed of the inputs": "; ".join(summary.get("assumptions", [])) or None,
    }


def _pool(pool: dict[str, Any]) -> str:
    every = ", every row of the tables" if pool.get("every_row") else ""
    users = f" of {pool['users']:,} users" if pool.get("users", 1) > 1 else ""
    if "source" in pool:
        return f"{pool['items']:,} items{users}, {pool['source']}"
    touched = _mib(pool["touched_bytes"])
    if cache := pool.get("cache_bytes"):
        touched += f" ({pool['touched_bytes'] / cache:.1f} times the last-level cache)"
    return f"pool of {pool['items']:,} items{users} touching {touched}{every}"


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
