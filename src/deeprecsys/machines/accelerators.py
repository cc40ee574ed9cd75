"""Accelerators by name. Those that are not here: how long one would take for a request, from
published figures or from a profile. Whatever rests on one is labelled as emulated.

Add one: its speed-up table beside `gtx_1080ti.csv`, and a line in `SPEEDUPS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from deeprecsys.core import FloatArray, UserError
from deeprecsys.machines.service_time import Profile, ServiceTime

# Speed-up over one CPU core, by model and batch size.
SPEEDUPS = {"gtx-1080ti": "gtx_1080ti.csv"}


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device that executes whole queries. service: seconds of one request by its items."""

    name: str
    service: ServiceTime
    text: str
    emulated: bool = True

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "emulated": self.emulated, "service": self.text}


def accelerator(text: str, model: str | None, profile: Profile | None) -> Accelerator:
    """ "gtx-1080ti" (its speed-up over the profile's one core), or "emulated:FILE" (a profile).

    UserError for an unknown name, a model without a figure, or a missing profile.
    """
    name, _, path = text.partition(":")
    if name == "emulated" and path:
        found = Profile.load(path)
        if model is not None:
            found.check(model=model)
        return Accelerator(text, ServiceTime.from_profile(found), f"the profile {path}")
    check_names([text])
    if cuda_number(text) is not None:
        raise UserError(f"{text} is no emulation: simulate it from its profile, emulated:FILE")
    if profile is None or model is None:
        raise UserError(f"{text} is a speed-up over a model's own profile: give a model, no law")
    return _faster(text, model, profile)


def check_names(texts: Sequence[str]) -> None:
    """UserError for a name that no accelerator has, before any work."""
    for text in texts:
        known = text in SPEEDUPS or cuda_number(text) is not None
        if not known and not text.startswith("emulated:"):
            names = ", ".join([*SPEEDUPS, "emulated:FILE", "cuda:N"])
            raise UserError(f"unknown accelerator {text!r}; known: {names}")


def cuda_number(text: str) -> int | None:
    """Which GPU of this machine "cuda" or "cuda:N" names; None: neither."""
    name, colon, number = text.partition(":")
    if name != "cuda" or bool(colon) != number.isdecimal():
        return None
    return int(number or 0)


def _faster(name: str, model: str, profile: Profile) -> Accelerator:
    """One core's mean times, over the published speed-up at each batch size."""
    batch_sizes, speedup = speedups(name, model)
    items, seconds = profile.mean_s(min(profile.busy_levels))
    at = np.interp(np.log(items), np.log(batch_sizes), speedup)
    service = ServiceTime.table(items, seconds / at)
    return Accelerator(name, service, f"published speed-up of {name} over this profile's one core")


def speedups(name: str, model: str) -> tuple[FloatArray, FloatArray]:
    """(batch sizes, speed-up over one core), as published. UserError for a model without."""
    lines = (files("deeprecsys.machines") / SPEEDUPS[name]).read_text().splitlines()
    head, *rows = [line.split(",") for line in lines if not line.startswith("#")]
    table = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    if model not in table:
        raise UserError(f"no speed-up of {name} was published for {model}; use emulated:FILE")
    return np.array([float(cell) for cell in head[1:]]), np.array(table[model])
