"""One model that `serve` is to serve: from its options, or its table in a file, to where its
versions come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deeprecsys.cli import options as opt
from deeprecsys.cli.which import Own, Published, which
from deeprecsys.core import SLA, Execution, Policy, Servable, UserError

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.serving.dataplane import Served
    from deeprecsys.serving.source import Source

# Not "auto": what is measured fastest alone may hold the GIL that reading requests needs.
_RUNTIME = "torchscript"
_FIRST = "1"


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to know of a model without holding it. made: what a published one's weights
    depend on."""

    name: str
    target: SLA | None
    published: bool
    memory_bytes: int
    made: Mapping[str, Any]


# Of an entry, what says which model it is.
_OF_MODEL = ("model", "trust", "scale", "variant", "seed", "query_inputs", "version")


@dataclass(frozen=True)
class Entry:
    """name: what clients call it; None: what the model is called. The others are options of
    `serve`, or keys of a model's table in its file: weight, its share of the workers beside other
    models; slower, the most that a new version's p95 may be over that of the one it replaces;
    keep, versions in memory beside the one that serves; version, the one to begin with."""

    model: str
    name: str | None = None
    policy: str | None = None
    batch_size: int | None = None
    execution: str | None = None
    sla_ms: float | None = None
    percentile: float | None = None
    deadline_ms: float | None = None
    scale: float = 1.0
    variant: str = "paper"
    runtime: str | None = None
    query_inputs: bool = True
    trust: bool = False
    seed: int = 0
    weight: float = 1.0
    slower: float = 1.5
    keep: int = 1
    version: str | None = None
    hang_s: float = 30.0
    log_queries: bool = False
    log_share: float = 1.0
    accelerator: Sequence[str] = ()
    where: str = ""  # of a file's: what messages begin with

    def check(self) -> None:
        """UserError for what contradicts itself, before any work."""
        if self.deadline_ms is not None and self.deadline_ms < 0:
            raise UserError(f"{self.where}--deadline-ms must not be negative")
        for name in ("hang_s", "weight", "slower"):
            opt.positive(f"{self.where}--{name.replace('_', '-')}", getattr(self, name))
        if not 0 <= self.log_share <= 1:
            raise UserError(f"{self.where}--log-share is from 0 to 1, not {self.log_share:g}")
        if self.log_share < 1 and not self.log_queries:
            raise UserError(f"{self.where}--log-share is of the log of queries: give --log-queries")
        if self.keep < 0:
            raise UserError(f"{self.where}keep must not be negative")
        seen, tuned = self.seen, self.tuned
        if self.policy:  # again, now that it is known whose it has to be
            Tuned.read(self.policy, None if self._folder else seen.name, seen.made)
        if seen.published:
            opt.check_runtime(tuned.runtime or _RUNTIME)
            if self.accelerator:
                opt.check_cores_alone(tuned.policy.execution)
        elif self.accelerator:
            raise UserError("a model of your own runs on the cores: leave out --accelerator")
        _check_accelerators(self.accelerator, tuned.policy)

    @cached_property
    def served_as(self) -> str:
        return self.name or (Path(self.model).name if self._folder else self.seen.name)

    @cached_property
    def _folder(self) -> Path | None:
        """Of versions."""
        from deeprecsys.artifacts import is_path
        from deeprecsys.artifacts.versions import is_folder_of_versions

        path = Path(self.model)
        return path if is_path(self.model) and is_folder_of_versions(path) else None

    def versions(self) -> Sequence[str]:
        """Those that may be loaded, the one to serve last."""
        from deeprecsys.artifacts.versions import versions

        return (_FIRST,) if self._folder is None else versions(self._folder)

    @cached_property
    def seen(self) -> Seen:
        """What is known of the model. A user's own is opened for that, and served then."""
        model = self.which(self._begins)
        self._opened.append(model)
        return Seen(model.name, model.target, isinstance(model, Published), model.memory_bytes,
                    _made(model))  # fmt: skip

    @cached_property
    def _opened(self) -> list[Published | Own]:
        """The version to begin with, until it is served."""
        return []

    def like(self, other: Entry | None) -> Self:
        """The same, which need not open its model where the other has: they differ in how it is
        served alone."""
        alike = other is not None and all(
            getattr(self, name) == getattr(other, name) for name in _OF_MODEL
        )
        if alike and other is not None and self._execution == other._execution:
            self.__dict__["seen"] = other.seen  # in place of what would be found out
        return self

    @property
    def _execution(self) -> Execution:
        return self._chosen.policy.execution

    @property
    def _begins(self) -> str:
        offered = self.versions()
        if not offered:
            raise UserError(
                f"{self.model} has no whole version: add one by `deeprecsys inspect MODEL "
                f"--publish {self.model}`"
            )
        if self.version is not None and self.version not in offered:
            raise UserError(
                f"{self.model} has no whole version {self.version}; there are: {', '.join(offered)}"
            )
        return self.version or offered[-1]

    def which(self, version: str) -> Published | Own:
        """As it is to be executed. UserError where it cannot be, or where there is no room."""
        path = self.model if self._folder is None else str(self._folder / version)
        model = which(path, trust=self.trust, scale=self.scale, variant=self.variant,
                      seed=self.seed)  # fmt: skip
        model = replace(model, execution=self._execution)
        if isinstance(model, Published):
            model.check()
            model = replace(model, query_inputs=self.query_inputs and model.of_user)
        model.check()
        return model

    @cached_property
    def _chosen(self) -> Tuned:
        """As its file says, or the options."""
        tuned = Tuned.read(self.policy, None) if self.policy else Tuned()
        return replace(tuned, policy=self._policy(tuned))

    @cached_property
    def tuned(self) -> Tuned:
        """Policy, target and runtime."""
        tuned, seen = self._chosen, self.seen
        sla = opt.asked_target(tuned.sla or seen.target, self.sla_ms, self.percentile)
        if sla is None:
            raise UserError(f"{self.where}{opt.NO_TARGET}")
        usual = _RUNTIME if seen.published else "auto"
        return replace(tuned, sla=sla, runtime=self.runtime or tuned.runtime or usual)

    def _policy(self, tuned: Tuned) -> Policy:
        """As its file says, or the options."""
        if self.policy and self.batch_size is not None:
            raise UserError(f"{self.where}give either --policy or --batch-size")
        asked, own = opt.asked_execution(self.execution), tuned.policy.execution
        if self.policy:
            if self.execution is not None and asked != own:
                raise UserError(
                    f"{self.policy} was chosen for execution {own}: leave out --execution {asked}, "
                    "or tune again"
                )
            return tuned.policy
        policy = Policy(execution=asked)
        return policy if self.batch_size is None else replace(policy, batch_size=self.batch_size)

    @property
    def served(self) -> Served:
        from deeprecsys.serving.dataplane import Served

        tuned = self.tuned
        assert tuned.sla is not None
        sla = tuned.sla
        deadline_s = sla.latency_s if self.deadline_ms is None else self.deadline_ms / 1e3 or None
        return Served(
            self.served_as, tuned.policy, sla, deadline_s, deadline_s is not None, self.hang_s,
            self.log_queries, self.weight, self.log_share,
        )  # fmt: skip

    def source(self, **engine: Any) -> Source:
        """engine: more of what an engine is told, where this is the first model."""
        from deeprecsys.serving.source import Limits, Source

        return Source(
            self.served,
            lambda version, workers_of, weight: self._open(version, workers_of, weight, engine),
            self.versions,
            self._bytes,
            None if self._folder is None else self._begins,
            Limits(self.slower, self.keep),
        )

    def _bytes(self, version: str) -> int:
        """Of memory that a version takes, about; it is not opened for that."""
        if self._folder is None:
            return self.seen.memory_bytes
        return sum(f.stat().st_size for f in (self._folder / version).rglob("*") if f.is_file())

    def _open(
        self, version: str, workers_of: Engine | None, weight: float, more: Mapping[str, Any]
    ) -> Engine:
        from deeprecsys.artifacts.versions import check
        from deeprecsys.engine import Engine

        if self._folder is not None:
            check(self._folder / version)
        begins = version == self._begins
        opened = self._opened.pop() if begins and self._opened else self.which(version)
        loaded, tuned = opened.load(), self.tuned
        self._check_weights(loaded, first=workers_of is None or begins)
        assert tuned.sla is not None
        own = more if workers_of is None else {"max_queued_items": more.get("max_queued_items")}
        return Engine(
            loaded, runtime=tuned.runtime or "auto", percentile=tuned.sla.percentile,
            workers_of=workers_of, weight=weight, **own,
        ).__enter__()  # fmt: skip

    def _check_weights(self, model: Servable, *, first: bool) -> None:
        """UserError where they are not those that the policy was chosen for. A later version has
        others of course; what a reduced execution does to its scores is then not known."""
        from deeprecsys.artifacts.weights import weights_hash

        tuned = self.tuned
        if tuned.weights is None or (found := weights_hash(model)) == tuned.weights:
            return
        if first and self._folder is None:
            raise UserError(
                f"{self.policy} was chosen for weights {tuned.weights}, {self.served_as} here has "
                f"{found}: tune again, or serve the model that it was chosen for"
            )
        check_accuracy(model, tuned)


def check_accuracy(model: Servable, tuned: Tuned) -> None:
    """UserError where a reduced execution moves the scores of other weights further than it moved
    those that the policy was chosen for."""
    import numpy as np

    exact = getattr(model, "exact", None)
    if exact is None or tuned.difference is None:
        return
    inputs = model.example(_CHECKED, np.random.default_rng(0))
    apart = float(np.abs(model.reference(inputs) - exact.reference(inputs)).max())
    if apart > _TIMES * tuned.difference:
        raise UserError(
            f"its scores in {tuned.policy.execution} are {apart:.4f} from the exact ones, and "
            f"{tuned.difference:.4f} where the policy was chosen: tune it again"
        )


# Candidates, and how much further apart their scores may be than where the policy was chosen.
_CHECKED, _TIMES = 512, 2.0


def _made(model: Published | Own) -> dict[str, Any]:
    """What a published model's weights depend on."""
    if isinstance(model, Own):
        return {}
    return {name: getattr(model, name) for name in ("variant", "scale", "seed")}


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a policy.json says, as `tune` writes it; or a bare policy's."""

    policy: Policy = field(default_factory=Policy)
    sla: SLA | None = None
    runtime: str | None = None
    weights: str | None = None  # their hash
    difference: float | None = None  # the most that its execution moved their scores

    @classmethod
    def read(cls, path: str, model: str | None, made: Mapping[str, Any] | None = None) -> Self:
        """UserError where it cannot be read, or is of another model (None: of any), or one made
        otherwise."""
        try:
            raw = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the policy {path}: {error}") from error
        policy = raw.get("policy", raw) if isinstance(raw, dict) else None
        if not isinstance(policy, dict):
            raise UserError(f"{path} holds no policy: give a policy.json that `tune` wrote")
        if policy is raw:
            return cls(Policy.from_dict(raw))
        about, sla = raw.get("model"), raw.get("sla")
        about = about if isinstance(about, dict) else {"model": about}
        if model is not None and (of := about.get("model")) not in (None, model):
            raise UserError(f"{path} is the policy of {of}, not of {model}")
        for name, given in (made or {}).items():
            if about.get(name) not in (None, given):
                raise UserError(
                    f"{path} was chosen for {name} {about[name]}, not {given}: "
                    f"give --{name} {about[name]}, or tune again"
                )
        try:
            target = SLA(sla["latency_s"], sla["percentile"]) if sla else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} has a damaged sla: {sla!r}; tune again") from error
        return cls(
            Policy.from_dict(policy),
            target,
            raw.get("runtime"),
            about.get("weights"),
            _largest(raw.get("guard")),
        )


def _largest(guard: Any) -> float | None:
    """How far the guard saw scores move at most, of a policy that it has let pass."""
    drift = guard.get("drift") if isinstance(guard, dict) else None
    largest = drift.get("largest") if isinstance(drift, dict) else None
    return float(largest) if isinstance(largest, int | float) else None


def _check_accelerators(accelerators: Sequence[str], policy: Policy) -> None:
    for text in accelerators:
        if not text.startswith("cuda:"):
            raise UserError(f"--accelerator {text} computes nothing: serve takes cuda:N only")
    if policy.offload_threshold is not None and not accelerators:
        raise UserError("this policy offloads: give the --accelerator, or another policy")


__all__ = ["Entry", "Tuned", "check_accuracy"]
