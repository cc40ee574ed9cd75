"""The file that describes a fleet and its traffic (TOML), for `simulate --fleet` and `plan`.

Every mistake in it is one line that names the place. `docs/fleets.md` shows one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.fleet.fleet import Event, Fleet, Kind
from deeprecsys.machines.accelerators import Accelerator, accelerator
from deeprecsys.machines.service_time import Profile, ServiceTime
from deeprecsys.workload import parse_sizes
from deeprecsys.workload.mix import Mix, Share


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ModelPart(_Part):
    """name: of a published model, of one known by its law only, or the path of a user's own, which
    is opened. qps: the mean over the run. sla_ms: default, the published one of that name, or what
    a user's own declares. trust: its form may run foreign code. whole: its queries are never cut.
    """

    name: str
    trust: bool = False
    whole: bool = False
    most_items: int | None = None
    qps: float | None = None
    sizes: str = "production"
    sla_ms: float | None = None
    percentile: float = 95.0

    @property
    def sla(self) -> SLA:
        if self.sla_ms is None:
            from deeprecsys.models import get_spec

            return get_spec(self.name).target
        return SLA(self.sla_ms / 1e3, self.percentile)


class KindPart(_Part):
    """profile or service: of the one model; profiles or services: by model. cost: of a machine, in
    whatever unit. watts: of a machine, idle and at work. most: that can be had."""

    name: str
    workers: int
    count: int = 1
    profile: str | None = None
    service: str | None = None
    profiles: dict[str, str] = {}
    services: dict[str, str] = {}
    batch_size: int | None = None
    offload_threshold: int | None = None
    offload_backlog: int | None = None
    accelerator: str | None = None
    accelerators: int = 1
    cost: float | None = None
    watts: tuple[float, float] | None = None
    most: int | None = None


class EventPart(_Part):
    at_s: float
    machine: int
    what: str
    factor: float = 1.0


class Failures(_Part):
    """This fraction of the machines fails once, for so long."""

    fraction: float
    down_s: float = 30.0


class Stragglers(_Part):
    """This fraction of the machines is so many times slower, all the time."""

    fraction: float
    factor: float = 3.0


class Day(_Part):
    """seconds: how long the run is. A day may be compressed: the load changes slowly beside any
    query all the same."""

    seconds: float = 600.0
    arrivals: str = "daily"


class FleetFile(_Part):
    kind: list[KindPart] = []
    model: list[ModelPart] = []
    day: Day = msgspec.field(default_factory=Day)
    balancer: str = "two-choices"
    event: list[EventPart] = []
    failures: Failures | None = None
    stragglers: Stragglers | None = None

    @property
    def arrivals(self) -> str:
        return f"daily:{self.day.seconds:g}" if self.day.arrivals == "daily" else self.day.arrivals


def read(path: str) -> FleetFile:
    """UserError in one line."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}")
    try:
        found = msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), FleetFile)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found.model = [_named(model, source.parent) for model in found.model]
    if not found.kind:
        raise UserError(f"{path} has no kind of machine: add a [[kind]]")
    if not found.model:
        raise UserError(f"{path} has no traffic: add a [[model]] with its name and qps")
    names = [kind.name for kind in found.kind]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two kinds have one name")
    for kind in found.kind:
        if kind.cost is not None and not 0 <= kind.cost < np.inf:
            raise UserError(f"kind {kind.name}: a cost must not be negative, not {kind.cost:g}")
        if kind.watts is not None and not 0 <= kind.watts[0] <= kind.watts[1] < np.inf:
            raise UserError(f"kind {kind.name}: watts are idle and at work, idle not above")
    for part in (found.failures, found.stragglers):
        if part is not None and not 0 <= part.fraction < 1:
            raise UserError(
                f"a failing or slow fraction lies between 0 and 1, not {part.fraction:g}: "
                "with all machines down nobody answers"
            )
    if not 0 < found.day.seconds < np.inf:
        raise UserError(f"a day must last longer than 0 s, not {found.day.seconds:g}")
    return found


def _named(part: ModelPart, folder: Path) -> ModelPart:
    """Of a path, relative to the file: what the model found there says of itself."""
    from deeprecsys.artifacts import FORMS, open_model
    from deeprecsys.models import NAMES

    likely = "/" in part.name or Path(part.name).suffix.lower() in FORMS
    if part.name in NAMES or not (likely or (folder / part.name).exists()):
        return part
    model = open_model(folder / part.name, trust=part.trust)
    target = model.target
    if part.sla_ms is None and target is None:
        raise UserError(f"which target has model {part.name}? add sla_ms to it")
    if part.sla_ms is None and target is not None:
        part = replace(part, sla_ms=target.latency_s * 1e3, percentile=target.percentile)
    sizes = part.sizes if part.sizes != ModelPart("").sizes else model.sizes or part.sizes
    return replace(
        part, name=model.name, sizes=sizes, whole=model.whole, most_items=model.most_items
    )


def fleet_of(file: FleetFile, folder: Path, seed: int = 0) -> Fleet:
    """Relative paths are from `folder`, the file's own."""
    kinds = [kind_of(part, file, folder) for part in file.kind]
    machines = sum(kind.count for kind in kinds)
    return Fleet(kinds, file.balancer, events=_events(file, machines, seed), seed=seed)


def kind_of(part: KindPart, file: FleetFile, folder: Path, policy: Policy | None = None) -> Kind:
    """policy: instead of the file's."""
    services, devices, policies = {}, {}, {}
    for one in file.model:
        model = one.name
        services[model], profile = _service(part, model, len(file.model) == 1, folder)
        if part.accelerator is not None:
            device = _accelerator(part.accelerator, model, profile, folder)
            devices[model] = [device] * part.accelerators
        policies[model] = policy or stated_policy(part, one)
    return Kind(part.name, part.count, part.workers, services, policies, devices)


def stated_policy(part: KindPart, model: ModelPart) -> Policy:
    """The file's; of a model whose queries are not cut, with requests as large as the largest."""
    policy = Policy(
        part.batch_size or 128, part.offload_threshold, offload_backlog=part.offload_backlog
    )
    return policy.uncut(parse_sizes(model.sizes).largest) if model.whole else policy


def mix_of(file: FleetFile, seed: int = 0) -> Mix:
    for model in file.model:
        if model.qps is None:
            raise UserError(f"model {model.name} has no qps: say how much traffic it gets")
    shares = [Share(m.name, m.qps or 0.0, m.sizes) for m in file.model]
    return Mix(shares, file.arrivals, seed)


def _service(
    part: KindPart, model: str, only: bool, folder: Path
) -> tuple[ServiceTime, Profile | None]:
    profile = part.profiles.get(model) or (part.profile if only else None)
    law = part.services.get(model) or (part.service if only else None)
    if (profile is None) == (law is None):
        raise UserError(
            f"kind {part.name} needs a profile or a service time of {model}, one of the two"
        )
    if law is not None:
        return ServiceTime.parse(law), None
    found = Profile.load(folder / str(profile))
    found.check(model=model)
    return ServiceTime.from_profile(found, extrapolate=True), found


def _accelerator(text: str, model: str, profile: Profile | None, folder: Path) -> Accelerator:
    name, _, rest = text.partition(":")
    if name == "service":
        return Accelerator(text, ServiceTime.parse(rest), "a law")
    if name == "emulated":
        return accelerator(f"emulated:{folder / rest}", model, profile)
    return accelerator(text, model, profile)


def _events(file: FleetFile, machines: int, seed: int) -> list[Event]:
    rng = np.random.default_rng([seed, 0xFA11])
    events = [Event(e.at_s, e.machine, e.what, e.factor) for e in file.event]
    if file.failures is not None:
        down_s = file.failures.down_s
        if not 0 < down_s < file.day.seconds:
            raise UserError(f"down_s must lie between 0 and the day's length, not {down_s:g}")
        for m in rng.permutation(machines)[: round(file.failures.fraction * machines)]:
            at_s = float(rng.uniform(0, file.day.seconds - down_s))
            events += [Event(at_s, int(m), "down"), Event(at_s + down_s, int(m), "up")]
    if file.stragglers is not None:
        slow = rng.permutation(machines)[: round(file.stragglers.fraction * machines)]
        events += [Event(0.0, int(m), "slow", file.stragglers.factor) for m in slow]
    return events


def described(file: FleetFile) -> dict[str, Any]:
    """For summaries: what the file said."""
    return dict(msgspec.to_builtins(file))
