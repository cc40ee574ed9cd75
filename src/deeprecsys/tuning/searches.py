"""Searches over policies: each knows a function that measures one, and nothing of systems.

`measure(policy)` answers a `Capacity` after a first, quick look. A search answers the policies
worth a careful second look, in any order. Add one: a function here and a line in `SEARCHES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deeprecsys.core import EXACT, Execution, Policy, UserError, replace
from deeprecsys.tuning.capacity import Capacity

# The paper's static setting spreads the largest query evenly: ceil(1000 / cores), which it
# prints as 25 for its 40-core Skylake (recalled, not checked against the PDF).
LARGEST_QUERY = 1000
LITERAL_25 = 25

# By how much the best batch sizes of two executions of one model may differ.
_NEAR = 4

# Items that an accelerator may have to do before a query stays on the cores, worth a try.
BACKLOGS = (500, 1000, 2000, 4000, 8000)

Measure = Callable[[Policy], Capacity]


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from.

    thresholds: sizes from which on queries may be offloaded, descending; empty without an
    accelerator. trials: of a search that could go on for ever. whole: no query may be cut, so
    there is one batch size. most: items of a request, that its model takes (None: any).
    executions: how a request may be executed, the model's own way first.
    """

    workers: int
    largest: int
    thresholds: tuple[int, ...] = ()
    trials: int = 60
    whole: bool = False
    most: int | None = None
    executions: tuple[Execution, ...] = (EXACT,)

    @property
    def batch_sizes(self) -> list[int]:
        """1, 2, 4 .. to the first that leaves the largest query whole, or to the most allowed."""
        if self.whole:
            return [self.largest]
        sizes = [1]
        while sizes[-1] < min(self.largest, self.most or self.largest):
            sizes.append(2 * sizes[-1])
        return [*sizes[:-1], self._allowed(sizes[-1])]

    def of(self, execution: Execution) -> list[Policy]:
        """A policy for each batch size."""
        return [Policy(batch_size=size, execution=execution) for size in self.batch_sizes]

    def near(self, execution: Execution, batch_size: int) -> list[Policy]:
        """The same within a factor of four: where another execution's best was."""
        return [
            policy
            for policy in self.of(execution)
            if batch_size <= _NEAR * policy.batch_size and policy.batch_size <= _NEAR * batch_size
        ]

    @property
    def static(self) -> Policy:
        return Policy(batch_size=self._allowed(-(-LARGEST_QUERY // self.workers)))

    @property
    def literal(self) -> Policy:
        return Policy(batch_size=self._allowed(LITERAL_25))

    def _allowed(self, batch_size: int) -> int:
        if self.whole:
            return self.largest
        return min(batch_size, self.most or batch_size)


def hill_climb(measure: Measure, space: Space) -> None:
    """The paper's climb: batch size 1 upward while the rate grows; then the threshold, downward.
    Beyond the paper: a climb for each other execution, near where that of the first ended; and then
    how much an accelerator may have to do before a query stays on the cores.

    A plateau, or a loss within the noise of a first look, does not stop it: two steps in a row
    must be surely worse than the best.
    """
    first, *others = space.executions
    tops = [_climb(measure, space.of(first))]
    near = tops[0][0].batch_size
    tops += [_climb(measure, space.near(execution, near)) for execution in others]
    best, _ = max(tops, key=lambda top: top[1])
    if space.thresholds:
        best, _ = _climb(measure, [best, *offloading(best, space)])
        for policy in staying(best, space):
            measure(policy)


def _climb(measure: Measure, policies: Sequence[Policy]) -> tuple[Policy, float]:
    """The best of them and its rate, tried in order until two in a row are surely worse than the
    best."""
    best, rate, worse = policies[0], measure(policies[0]), 0
    for policy in policies[1:]:
        found = measure(policy)
        if found.interval_qps[1] < rate.interval_qps[0]:
            worse += 1
            if worse == 2:
                break
            continue
        worse = 0
        if found.rate_qps > rate.rate_qps:
            best, rate = policy, found
    return best, rate.rate_qps


def offloading(policy: Policy, space: Space) -> list[Policy]:
    """The same policy with each threshold, the one that offloads least first."""
    return [replace(policy, offload_threshold=size) for size in space.thresholds]


def staying(policy: Policy, space: Space) -> list[Policy]:
    """The same with each backlog; of a policy that offloads nothing, with the highest threshold.

    A threshold can only offload all queries of a size: where they are more than an accelerator can
    do, none of it is used without a backlog.
    """
    threshold = policy.offload_threshold or space.thresholds[0]
    return [
        replace(policy, offload_threshold=threshold, offload_backlog=items) for items in BACKLOGS
    ]


def exhaustive(measure: Measure, space: Space) -> None:
    """Every batch size of the climb, the sizes between them from 16 on, and both baselines, in
    every execution; then
    every threshold, with the best of them; then every backlog, with the best of those."""
    between = [3 * size // 2 for size in space.batch_sizes[:-1] if size >= 16]
    sizes = {*space.batch_sizes, *between, space.static.batch_size, space.literal.batch_size}
    found = {
        policy: measure(policy).rate_qps
        for execution in space.executions
        for policy in (Policy(batch_size=size, execution=execution) for size in sorted(sizes))
    }
    best = max(found, key=lambda policy: found[policy])
    if space.thresholds:
        rates = {policy: measure(policy).rate_qps for policy in [best, *offloading(best, space)]}
        for policy in staying(max(rates, key=lambda policy: rates[policy]), space):
            measure(policy)


def joint(measure: Measure, space: Space) -> None:
    """All knobs at once, by optuna's tree-structured Parzen estimator: batch size, workers,
    execution and, with an accelerator, offload threshold and backlog. The same seed gives the
    same policies.

    UserError without optuna.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "method joint needs optuna: pip install 'deeprecsys[joint]', or choose hill-climb"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=12)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    # What is known to be sensible comes first: the largest requests, with and without offloading.
    middle = len(space.thresholds) // 2
    for at in dict.fromkeys([0, middle]):
        first = {"batch": len(space.batch_sizes) - 1, "workers": space.workers, "execution": 0}
        study.enqueue_trial(first | ({"threshold": at, "backlog": 0} if space.thresholds else {}))
    for _ in range(space.trials):
        trial = study.ask()
        policy = _proposed(trial, space)
        study.tell(trial, measure(policy).rate_qps)


def _proposed(trial: Any, space: Space) -> Policy:
    """0 of threshold and backlog: none."""
    batch = space.batch_sizes[trial.suggest_int("batch", 0, len(space.batch_sizes) - 1)]
    workers = trial.suggest_int("workers", 1, space.workers)
    how = trial.suggest_int("execution", 0, len(space.executions) - 1)
    policy = Policy(
        batch,
        workers=workers if workers < space.workers else None,
        execution=space.executions[how],
    )
    if not space.thresholds:
        return policy
    at = trial.suggest_int("threshold", 0, len(space.thresholds))
    level = trial.suggest_int("backlog", 0, len(BACKLOGS))
    if not at:
        return policy
    return replace(
        policy,
        offload_threshold=space.thresholds[at - 1],
        offload_backlog=BACKLOGS[level - 1] if level else None,
    )


def static(measure: Measure, space: Space) -> None:
    """The paper's baseline and its literal 25: nothing is searched."""
    measure(space.static)
    measure(space.literal)


SEARCHES: dict[str, Callable[[Measure, Space], None]] = {
    "hill-climb": hill_climb,
    "exhaustive": exhaustive,
    "joint": joint,
    "static": static,
}


# Not a search over a measured function: the policies come from a search in simulation.
SIMULATED = "simulated"


def contenders(trials: Sequence[tuple[Policy, Capacity]], most: int = 3) -> list[Policy]:
    """The policies whose first look leaves them a chance of being the best, best first."""
    able = sorted((t for t in trials if t[1].rate_qps > 0), key=lambda t: -t[1].rate_qps)
    if not able:
        return []
    sure = max(capacity.interval_qps[0] for _, capacity in able)
    return [policy for policy, capacity in able if capacity.interval_qps[1] >= sure][:most]


def contenders_of_both(trials: Sequence[tuple[Policy, Capacity]]) -> list[Policy]:
    """The same of exact executions, and of those that are not: each has a best of its own."""
    exact = [trial for trial in trials if trial[0].execution.exact]
    other = [trial for trial in trials if not trial[0].execution.exact]
    return [*contenders(exact, most=2), *contenders(other, most=2)] if other else contenders(exact)
