"""Machines that are not here: how `simulate` comes by a law and a simulator; the paper's results.

A law is given, or read from a profile, or profiled on this machine first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deeprecsys.core import SLA, UserError
from deeprecsys.experiments.paper import RESULTS, Case, Row
from deeprecsys.experiments.result import Asked, Result, origin
from deeprecsys.machines.accelerators import accelerator
from deeprecsys.machines.service_time import Profile, ServiceTime

if TYPE_CHECKING:
    from deeprecsys.simulation import Simulator

# Of a profile, what must be the same as what is simulated from it.
_SAME = ("model", "variant", "scale", "query_inputs", "execution")


@dataclass(frozen=True, kw_only=True)
class PaperResult(Result):
    """One of the paper's results, beside ours."""

    asked: Asked
    name: str
    rows: Sequence[Row]
    workers: int
    assumed: Mapping[str, Any]  # the law, and what it takes for granted
    elapsed_s: float

    def summary(self) -> dict[str, Any]:
        return {
            **self.asked.to_dict(),
            "paper": self.name,
            "workers": self.workers,
            "rows": [asdict(row) for row in self.rows],
            "simulated": dict(self.assumed),
            "elapsed_s": self.elapsed_s,
        }


def paper_result(
    name: str, law: ServiceTime, sla: SLA, asked: Asked, workers: int = 40
) -> PaperResult:
    """UserError for a name that is none of `paper.RESULTS`."""
    check_paper_name(name)
    began = time.monotonic()
    case = Case(asked.model or "", law, sla, workers, asked.workload.seed)
    rows = RESULTS[name](case)
    return PaperResult(
        origin=origin("simulate"),
        asked=asked,
        name=name,
        rows=rows,
        workers=case.workers,
        assumed={"service": law.text, "assumptions": law.assumptions(case.workers)},
        elapsed_s=time.monotonic() - began,
    )


def check_paper_name(name: str) -> None:
    if name not in RESULTS:
        raise UserError(f"unknown result {name!r} of the paper; known: {', '.join(RESULTS)}")


def given_law(
    service: str | None, profile: str | None, about: Mapping[str, Any], *, extrapolate: bool = False
) -> ServiceTime | None:
    """Of a law's text or a profile's file; None: to be measured. about: what the profile must be
    of, if it says a model."""
    if service is not None:
        return ServiceTime.parse(service)
    if profile is None:
        return None
    found = Profile.load(profile)
    if about.get("model") is not None:
        found.check(**{name: about.get(name) for name in _SAME})
    return ServiceTime.from_profile(found, extrapolate=extrapolate)


def machine(
    law: ServiceTime,
    workers: int | None,
    accelerators: Sequence[str] = (),
    model: str | None = None,
    seed: int = 0,
    cores: int = 1,
    whole: bool = False,
    most_items: int | None = None,
) -> Simulator:
    """As many workers as asked for; else as were profiled, or `cores`."""
    from deeprecsys.simulation import Simulator

    if workers is None and law.profile is not None:
        workers = law.profile.about.get("workers")
    devices = [accelerator(text, model, law.profile) for text in accelerators]
    return Simulator(
        law, workers or cores, accelerators=devices, seed=seed, whole=whole, most_items=most_items
    )
