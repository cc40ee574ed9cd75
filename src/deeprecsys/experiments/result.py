"""What every verb finds: a frozen value that can be saved, shown and taken apart.

A result knows its summary (`to_dict`, the JSON of the design) and, where there was one run to
show, that run's tables. Saving it leaves the folder that the verb leaves.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Self

from deeprecsys.core import EXACT, SLA, Records, Requests, for_json
from deeprecsys.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Result:
    """origin: machine, versions, date and command, as of when it was measured.

    records, requests: of the one run that the report shows, or None.
    """

    origin: Mapping[str, Any]
    records: Records | None = field(default=None, repr=False)
    requests: Requests | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The summary, as `--json` writes it; infinities and NaN are null."""
        return for_json({**self.origin, **self.summary()})  # type: ignore[no-any-return]

    def summary(self) -> dict[str, Any]:
        """What was found, without where it comes from."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Fills a run's folder, made if need be; the path of its report."""
        from deeprecsys.report import write_report

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "summary.json").write_text(self.to_json() + "\n")
        if self.records is not None and len(self.records):
            self.records.save(target / "records.parquet")
        if self.requests is not None and len(self.requests):
            self.requests.save(target / "requests.parquet")
        for name, content in self.files().items():
            (target / name).write_text(json.dumps(for_json(content), indent=1) + "\n")
        return write_report(target)

    def files(self) -> Mapping[str, Any]:
        """What else lies in its folder: name and JSON."""
        return {}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def report(self) -> str:
        """The report: one HTML page that opens offline."""
        from deeprecsys.report import render

        return render(self.to_dict(), self.records, self.requests)

    def _repr_html_(self) -> str:
        """In a notebook: the verdict and the main figure."""
        from deeprecsys.report import glance

        page = escape(glance(self.to_dict(), self.records, self.requests))
        return f'<iframe srcdoc="{page}" style="width:100%;height:44em;border:0"></iframe>'


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked: which model, under which load, for which target."""

    workload: Workload
    sla: SLA | None = None
    model: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # variant, scale, .. or path, form, ..

    @classmethod
    def of(cls, system: Any, workload: Workload, sla: SLA | None) -> Self:
        """As the system's model says, or the profile that it is simulated from, if there is one."""
        names: tuple[str, ...] = ("variant", "scale", "query_inputs", "execution")
        model = getattr(system, "model", None)
        said = getattr(getattr(getattr(system, "service", None), "profile", None), "about", {})
        if model is not None and not isinstance(model, str):
            own = getattr(model, "about", {})  # of a user's own
            own = {**own, "execution": str(getattr(model, "execution", EXACT))}
            said = {name: getattr(model, name, None) for name in names} | {"model": model.name}
            said, names = {**said, **own}, (*names, *own)
        about = {name: said[name] for name in names if said.get(name) is not None}
        return cls(workload=workload, sla=sla, model=said.get("model", model), about=about)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            **self.about,
            "seed": self.workload.seed,
            "sla": target_dict(self.sla),
            "workload": self.workload.to_dict(),
        }


def target_dict(sla: SLA | None) -> dict[str, float] | None:
    return sla and {"percentile": sla.percentile, "latency_s": sla.latency_s}  # type: ignore[return-value]


def origin(verb: str) -> dict[str, Any]:
    """What every summary says of where it comes from."""
    from deeprecsys.engine.topology import machine, versions

    return {
        "verb": verb,
        "command": command(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions(),
    }


def command() -> str:
    """What was typed: the verb, or the user's own program."""
    program = sys.argv[0] or "python"
    if Path(program).name in ("deeprecsys", "__main__.py"):
        program = "deeprecsys"
    return shlex.join([program, *sys.argv[1:]])


def emulation(summary: Mapping[str, Any]) -> str:
    """What goes before a sentence that rests on an accelerator which is not here."""
    device = summary.get("accelerator")
    return f"with an emulated {device['name']}: " if device and device["emulated"] else ""
