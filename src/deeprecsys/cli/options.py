"""The options that verbs share, and what they make: a model, a workload, a target, an engine.

A verb that measures takes a `Request` first; `measuring` gives its command line those options
on top of the verb's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from deeprecsys.analysis.usage import Watts
from deeprecsys.cli.which import Own, Published, which
from deeprecsys.core import EXACT, SLA, Execution, Policy, Servable, UserError
from deeprecsys.machines.accelerators import check_names, cuda_number
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.experiments.result import Asked

NOT_BESIDE = "--with is measured on this machine: tune and bench take it"
NO_TARGET = "which target? give --sla-ms, or say target = {sla_ms = 50} in model.toml"
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="One of `deeprecsys models`, or a path to your own.")
]
NoModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="One of `deeprecsys models`, a path to your own, or --service."
    ),
]
SlaMs = Annotated[float | None, typer.Option(help="Latency target, ms.  [default: the model's]")]
Percentile = Annotated[
    float | None, typer.Option(help="Percentile of the target.  [default: the model's, 95]")
]
Workers = Annotated[
    int | None, typer.Option(help="Worker threads.  [default: the cores this process may use]")
]
Sizes = Annotated[
    str,
    typer.Option(
        help="Query sizes: production, heavy-tail, lognormal, normal, fixed:N, uniform:A-B, "
        "file:PATH."
    ),
]
Arrivals = Annotated[
    str, typer.Option(help="Arrivals: poisson, constant, bursty, daily, replay:FILE.")
]
Indices = Annotated[str, typer.Option(help="Table look-ups: zipf:S or uniform.")]
Scale = Annotated[float, typer.Option(help="Rows of every table, times this.")]
Variant = Annotated[str, typer.Option(help="paper, or authors-code.")]
QueryInputs = Annotated[
    bool, typer.Option(help="Queries hold their user's inputs once, not once a candidate.")
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", help="Another model on the same workers meanwhile: MODEL@QPS; may be repeated."
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Open forms of MODEL that run foreign code in this process.")
]
ExecutionText = Annotated[
    str | None,
    typer.Option(
        "--execution",
        help="How requests are computed: exact, or rows=fp16|int8, layers=bf16|int8, packed, "
        "user=query, commas between.  [default: exact]",
    ),
]
RuntimeName = Annotated[str, typer.Option(help="auto, torchscript or eager.")]
Pin = Annotated[
    str,
    typer.Option(
        "--pin",
        help="Bind each worker to a core: auto (where the cores are this process's own), on, off.",
    ),
]
Accelerators = Annotated[
    list[str] | None,
    typer.Option(help="cuda:N; or gtx-1080ti or emulated:FILE (a profile), neither of which "
                 "computes. Several: give it again."),
]  # fmt: skip
WattsText = Annotated[
    str | None,
    typer.Option(
        help="Where no meter is: core=IDLE:BUSY,accelerator=IDLE:BUSY.  "
        "[default: 2.25:7.5 and 50:250]"
    ),
]
OffloadThreshold = Annotated[
    int | None, typer.Option(help="Queries of at least this size go to the accelerator.")
]
OffloadBacklog = Annotated[
    int | None,
    typer.Option(help="... but stay on the cores while it has more items than this to do."),
]
Seed = Annotated[int, typer.Option(help="Of weights and workload.")]
Out = Annotated[
    str | None, typer.Option(help="Folder of the run.  [default: runs/<time>-<verb>-<model>]")
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", help="Also write the result to this file; - for standard output."),
]
DurationS = Annotated[
    float | None, typer.Option(help="Length of a run, s.  [default: as needed; bench 10]")
]


@dataclass(frozen=True)
class Request:
    """What is to be measured, as asked for. UserError, before any work, if it cannot be."""

    model: ModelName
    sla_ms: SlaMs = None
    percentile: Percentile = None
    workers: Workers = None
    sizes: Sizes = "production"
    arrivals: Arrivals = "poisson"
    indices: Indices = "zipf:0.92"
    scale: Scale = 1.0
    variant: Variant = "paper"
    query_inputs: QueryInputs = False
    execution: ExecutionText = None
    runtime: RuntimeName = "auto"
    pin: Pin = "auto"
    accelerator: Accelerators = None
    watts: WattsText = None
    trust: Trust = False
    beside: With = None
    seed: Seed = 0
    out: Out = None
    json_file: JsonFile = None

    def check(self) -> None:
        self.check_machine()
        for model, _ in self.others:
            model.check()
        self.which.check()
        if isinstance(self.which, Published):
            check_runtime(self.runtime)
        for text in self.accelerator or []:
            if (number := cuda_number(text)) is not None:
                self._check_cuda(number)
        _ = self.target, self.workload

    def _check_cuda(self, number: int) -> None:
        if isinstance(self.which, Own):
            raise UserError("a model of your own runs on the cores: leave out --accelerator cuda")
        check_cores_alone(self.which.execution)
        from deeprecsys.runtimes.cuda import check

        check(number, self.which.memory_bytes)

    def check_machine(self) -> None:
        positive("--workers", self.workers)
        _ = pinned(self.pin)
        check_names(self.accelerator or [])
        _ = self.power

    @cached_property
    def power(self) -> Watts:
        return Watts() if self.watts is None else Watts.parse(self.watts)

    @cached_property
    def which(self) -> Published | Own:
        return which(
            self.model, trust=self.trust, scale=self.scale, variant=self.variant, seed=self.seed,
            query_inputs=self.query_inputs, execution=asked_execution(self.execution),
        )  # fmt: skip

    @cached_property
    def target(self) -> SLA | None:
        """As asked for, else the model's; None where neither says one."""
        return asked_target(self.which.target, self.sla_ms, self.percentile)

    @property
    def sla(self) -> SLA:
        """UserError where there is none."""
        if self.target is None:
            raise UserError(NO_TARGET)
        return self.target

    @cached_property
    def workload(self) -> Workload:
        return Workload(
            sizes=self._sizes, arrivals=self.arrivals, indices=self.indices, seed=self.seed
        )

    @property
    def _sizes(self) -> str:
        """As asked for, else the model's own law."""
        replayed = self.arrivals.startswith("replay:")  # which has its own sizes
        if self.sizes != Request.sizes or replayed or self.model is None:
            return self.sizes
        return self.which.sizes or self.sizes

    @property
    def label(self) -> str:
        """Its name, also where MODEL is a path."""
        return self.which.name

    @cached_property
    def others(self) -> list[tuple[Published | Own, float]]:
        """Models that have the same workers meanwhile, and queries a second."""
        from deeprecsys.artifacts import is_path

        found = []
        for text in self.beside or []:
            name, _, rate = text.rpartition("@")
            try:
                rate_qps = float(rate)
            except ValueError:
                rate_qps = math.nan
            if not name or not 0 < rate_qps < math.inf:
                raise UserError(f"--with is MODEL@QPS, not {text!r}: --with dlrm-rmc1@300")
            own = is_path(name)
            scale, variant = (1.0, "paper") if own else (self.scale, self.variant)
            other = which(name, trust=self.trust, scale=scale, variant=variant, seed=self.seed)
            found.append((other, rate_qps))
        return found

    def load(self) -> Servable:
        return self.which.load()

    def engine(self, model: Servable) -> Engine:
        """Not yet entered; warms up requests as large as the workload's queries."""
        from deeprecsys.engine import Engine

        largest = max(1024, self.workload.size_law.largest)
        return Engine(
            model,
            self.workers,
            self.runtime,
            pin=pinned(self.pin),
            largest=min(largest, 4096),
            accelerators=self.accelerator or (),
        )

    @property
    def asked(self) -> Asked:
        """What a summary says was asked for."""
        from deeprecsys.experiments.result import Asked

        return Asked(
            workload=self.workload, sla=self.target, model=self.label, about=self.which.about
        )

    def to_dict(self) -> dict[str, Any]:
        return self.asked.to_dict()


@dataclass(frozen=True)
class SimulationRequest(Request):
    """The same where the model may be left out: then there is a law, and no published target."""

    model: NoModelName = None  # type: ignore[assignment]

    def check(self) -> None:
        if self.beside:
            raise UserError(NOT_BESIDE)
        if self.model is not None:
            Request.check(self)
            return
        if self.execution is not None:
            raise UserError("--execution is of a MODEL: a law of service times has none")
        self.check_machine()
        _ = self.target, self.workload

    @cached_property
    def target(self) -> SLA | None:
        """None where no model and no --sla-ms says one."""
        of_model = None if self.model is None else self.which.target
        return asked_target(of_model, self.sla_ms, self.percentile)

    @property
    def label(self) -> str:
        return "service" if self.model is None else self.which.name

    @property
    def asked(self) -> Asked:
        from deeprecsys.experiments.result import Asked

        if self.model is not None:
            return super().asked
        return Asked(workload=self.workload, sla=self.target)


def asked_execution(text: str | None) -> Execution:
    """UserError for what cannot be read."""
    return EXACT if text is None else Execution.parse(text)


def check_cores_alone(execution: Execution) -> None:
    """UserError for another execution than a GPU's."""
    if execution != EXACT:
        raise UserError(
            f"a GPU executes exact, not {execution}: leave out --accelerator cuda, or --execution"
        )


def asked_target(own: SLA | None, sla_ms: float | None, percentile: float | None) -> SLA | None:
    """The model's own target, with what is asked for instead."""
    if own is None and sla_ms is None:
        return None
    usual = own or SLA(1.0)
    return SLA(
        usual.latency_s if sla_ms is None else sla_ms / 1e3,
        usual.percentile if percentile is None else percentile,
    )


def offloading(
    request: Request, policy: Policy, threshold: int | None, backlog: int | None
) -> Policy:
    """The policy with them; UserError if they ask for what is not there."""
    if threshold is not None and not request.accelerator:
        raise UserError("--offload-threshold needs an --accelerator")
    if backlog is not None and threshold is None:
        raise UserError("--offload-backlog needs an --offload-threshold")
    return replace(policy, offload_threshold=threshold, offload_backlog=backlog)


def measuring(verb: Callable[..., int]) -> Callable[..., int]:
    """A verb `f(request, its own options)` as one function of all the options, for the parser.

    Its own options are parameters, or one dataclass of them. The request is checked first.
    """
    asked_for = get_type_hints(verb)["request"]

    def checked(request: Request, **own: Any) -> int:
        request.check()
        return verb(request, **own)

    checked.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    checked.__annotations__ = get_type_hints(verb, include_extras=True) | {"request": asked_for}
    return expanded(checked)


def expanded(verb: Callable[..., int]) -> Callable[..., int]:
    """A verb whose parameters may be dataclasses, as one function of all their fields.

    The first option of the first parameter stays first (MODEL, URL); its others come last.
    """
    groups = {
        p.name: _parameters(p.annotation) if _is_group(p.annotation) else [p]
        for p in _parameters(verb)
    }
    kinds = get_type_hints(verb)

    def run(**given: Any) -> int:
        made = {
            name: kinds[name](**{p.name: given[p.name] for p in group})
            if _is_group(kinds[name])
            else given[name]
            for name, group in groups.items()
        }
        return verb(**made)

    (first, *last), *others = groups.values()
    every = [first, *(p for group in others for p in group), *last]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    return run


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)


def pinned(text: str) -> bool | None:
    """Of --pin: None is "auto". UserError for another word."""
    known = {"auto": None, "on": True, "off": False}
    if text not in known:
        raise UserError(f"--pin is auto, on or off, not {text!r}")
    return known[text]


def check_runtime(name: str) -> None:
    """UserError naming the known ones."""
    from deeprecsys.runtimes import RUNTIMES

    if name != "auto" and name not in RUNTIMES:
        known = ", ".join(["auto", *sorted(RUNTIMES)])
        raise UserError(f"unknown runtime {name!r}; known: {known}")


def positive(name: str, value: float | None) -> None:
    """UserError unless None or positive and finite."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} must be positive, not {value:g}")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """By keyword, with annotations that are types and not their text."""
    hints = get_type_hints(function, include_extras=True)
    return [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
    ]
