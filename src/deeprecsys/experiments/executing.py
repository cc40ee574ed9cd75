"""Which executions a tuning may choose: made, timed, held against the exact scores, opened.

What can be made is found out by making it, what is faster by timing it beside exact fp32, and what
is near enough by the guard. Of those that pass, the fastest one is opened beside the exact engine,
and so is the fastest exact one where that is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deeprecsys.core import EXACT, Execution, UserError
from deeprecsys.tuning.together import Together

if TYPE_CHECKING:
    from deeprecsys.analysis.drift import Drift
    from deeprecsys.engine import Engine
    from deeprecsys.workload import Workload

# What an execution must promise, to be held against the exact scores and searched.
GAIN = 1.04
# Seconds of the turns in which executions are timed; at most this share of a budget.
TIMED_S, _SHARE = 15.0, 0.1


@dataclass(frozen=True, slots=True)
class Tried:
    """An execution, and what was found of it.

    ratio: of its items a second to those of exact fp32, each at its best batch size, with the ends
    of a 95 % interval; None where it could not be made. seconds: median of a request by batch size.
    drift: None where it was not held against the exact scores. why: it may not be chosen; "" if it
    may.
    """

    execution: Execution
    ratio: tuple[float, float, float] | None = None
    seconds: Mapping[int, float] = field(default_factory=dict)
    drift: Drift | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        ratio, *interval = self.ratio or (None, None, None)
        return {
            "execution": str(self.execution),
            "ratio": ratio,
            "interval": interval,
            "seconds": {str(n): s for n, s in self.seconds.items()},
            "drift": self.drift.to_dict() if self.drift else None,
            "admitted": not self.why,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """system: what to tune: the engine itself, or several side by side. tried: exact first."""

    system: Any
    tried: Sequence[Tried] = ()


@contextmanager
def opened(
    engine: Engine,
    workload: Workload,
    accuracy: str,
    only: Execution | None = None,
    budget_s: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Chosen]:
    """The engine, and beside it engines of the executions that are worth a search.

    accuracy: one of `analysis.accuracy.LEVELS`. only: this execution and no other, if the guard
    admits it (UserError with its reason if not). say: is told a line about each.
    """
    if engine.devices or getattr(engine.model, "execution", None) != EXACT:
        yield Chosen(engine)
        return
    if only == EXACT or not (only or getattr(engine.model, "rewritable", True)):
        yield Chosen(engine)
        return
    seconds = TIMED_S if budget_s is None else min(TIMED_S, _SHARE * budget_s)
    models, tried = _timed(engine, workload, only, accuracy == "exact", seconds)
    tried = _judged(engine.model, models, tried, workload, accuracy, asked_for=only is not None)
    for one in tried[1:]:
        say(_line(one))
    if only is not None and tried[1].why:
        raise UserError(_refusal(tried[1], accuracy))
    worth = _worth(tried) if only is None else [only]
    with ExitStack() as stack:
        others = {how: stack.enter_context(engine.beside(models[how])) for how in worth}
        models.clear()  # with the tables of what was not chosen
        yield Chosen(Together({EXACT: engine, **others}) if others else engine, tried)


def _timed(
    engine: Engine, workload: Workload, only: Execution | None, exact_only: bool, seconds: float
) -> tuple[dict[Execution, Any], list[Tried]]:
    """Models by execution, and what a clock says of each; exact first, unjudged."""
    from deeprecsys.engine.executions import singles, survey

    model: Any = engine.model
    every = singles(model) if only is None else [only]
    wanted = [how for how in every if how.exact or not exact_only]
    found = survey(
        model, engine.cores, wanted=wanted, budget_s=seconds, runtime=engine.runtime.name,
        indices=workload.indices,
    )  # fmt: skip
    tried: dict[Execution, Tried] = {}
    for measured in found.seen:
        for how, by_size in measured.seconds.items():
            times = {size: measured.median_s(how, size) for size in by_size}
            tried.setdefault(how, Tried(how, measured.ratio(how), times))
    refused = [Tried(how, why=why) for how, why in found.refused.items()]
    return dict(found.models), [*tried.values(), *refused]


def _judged(
    model: Any,
    models: Mapping[Execution, Any],
    tried: Sequence[Tried],
    workload: Workload,
    accuracy: str,
    asked_for: bool,
) -> list[Tried]:
    """Those that promise something, or were asked for, held against the exact scores."""
    from deeprecsys.experiments.guarding import Guarded, guarded

    exact, *others = tried
    able = [one for one in others if one.ratio and (asked_for or one.ratio[0] >= GAIN)]
    wanted = [one.execution for one in able]
    try:
        found = {g.execution: g for g in guarded(model, wanted, workload, models=models)}
    except UserError as error:  # recorded queries that tell too little: nothing may be chosen
        found = {how: Guarded(how, None, 0.0, str(error)) for how in wanted}
    judged = [exact]
    for one in others:
        if (held := found.get(one.execution)) is not None:
            one = replace(one, drift=held.drift, why=held.why_not(accuracy))
        elif one.ratio:
            one = replace(one, why="not faster")
        judged.append(one)
    return judged


def _worth(tried: Sequence[Tried]) -> list[Execution]:
    """The fastest that may be chosen, and the fastest of exact arithmetic."""
    able = [one for one in tried[1:] if not one.why]
    exact = [one for one in able if one.execution.exact]
    best = [max(group, key=lambda one: one.ratio or (0.0,)) for group in (able, exact) if group]
    return list(dict.fromkeys(one.execution for one in best))


def _line(one: Tried) -> str:
    if one.ratio is None:
        return f"{one.execution}: {one.why}"
    ratio, lo, hi = one.ratio
    said = one.why or "within the guard"
    return f"{one.execution}: {ratio:.2f}× [{lo:.2f}, {hi:.2f}] the items/s of exact fp32; {said}"


def _refusal(one: Tried, accuracy: str) -> str:
    if one.ratio is None:
        return one.why
    return f"{one.execution} is not within --accuracy {accuracy}: {one.why}"


__all__ = ["Chosen", "Tried", "opened"]
