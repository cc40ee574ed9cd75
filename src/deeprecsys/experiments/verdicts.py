"""Answers in one sentence: what a study, a trial or a run of checks comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeprecsys.core import EXACT
from deeprecsys.report import text
from deeprecsys.tuning import Capacity, Comparison, Study, Trial

if TYPE_CHECKING:
    from deeprecsys.experiments.tuning import Check

# A ratio that may be anything within such a factor says nothing to a reader.
_WIDEST = 4.0


def tuned(study: Study) -> str:
    """Which policy serves how much, against which baselines, and what binds."""
    best, sla = study.best, study.sla
    if best is None:
        return _none_meets(study)
    capacity = best.capacity
    doubt = f", {capacity.doubt}" if capacity.doubt else ""
    parts = [f"{best.policy}: {rate(capacity)} at {sla}{doubt}"]
    parts += [said for c in study.comparisons if (said := _comparison(c, study))]
    if study.exact is not None and (said := _exact(study.exact)):
        parts.append(said)
    if ratio := predicted_over_measured(study):
        parts.append(f"simulation had predicted {ratio:.2f}× that")
    return "; ".join([*parts, f"bound by {study.binds.kind}"])


def checked(checks: Sequence[Check], share: float) -> str:
    """How many of the fresh runs held; empty without any."""
    if not checks:
        return ""
    held, of = sum(check.held for check in checks), len(checks)
    said = f"{held} of {of} fresh runs at {share:g}× of it held the target"
    return said if 2 * held > of else f"{said}: measure again, with more --budget-s"


def trial(found: Trial) -> str:
    capacity = found.capacity
    if capacity.rate_qps == 0 and capacity.idle_p95_s is not None:
        return f"{found.policy}: no rate; idle {text.ms(capacity.idle_p95_s)} ms"
    return f"{found.policy}: {rate(capacity)} {capacity.doubt}".rstrip()


def rate(capacity: Capacity) -> str:
    lo, hi = capacity.interval_qps
    bounds = text.interval((lo, hi if math.isfinite(hi) else None), text.rate)
    return f"{text.rate(capacity.rate_qps)} queries/s {bounds}"


def predicted_over_measured(study: Study) -> float | None:
    """What the search in simulation had predicted for the policy that was measured best."""
    if study.simulated is None or study.best is None:
        return None
    predicted = {t.policy: t.capacity.rate_qps for t in study.simulated.trials}
    if study.best.policy not in predicted:
        return None
    return predicted[study.best.policy] / study.best.capacity.rate_qps


def _none_meets(study: Study) -> str:
    sla, idle = study.sla, study.idle_p95_s
    if study.interrupted and idle is None:
        return "interrupted before any policy was measured"
    if idle is None or idle <= sla.latency_s:  # some rate may well
        return f"undecided: no rate was found to meet {sla} in that time; give more --budget-s"
    return (
        f"no rate meets {sla}; the idle machine already gives "
        f"p{sla.percentile:g} {text.ms(idle)} ms"
    )


def _comparison(comparison: Comparison, study: Study) -> str:
    how = comparison.policy.execution
    name = comparison.name if how == EXACT else f"{comparison.name} ({how})"
    name = f"{name} of {comparison.policy.batch_size}"
    if study.best is not None and comparison.policy == study.best.policy:
        return f"it is {name}"
    ratio = comparison.ratio
    if ratio is None:
        none = any(t.policy == comparison.policy and _none_holds(t.capacity) for t in study.trials)
        return f"{name} holds it at no rate" if none else f"against {name} not measured"
    lo, hi = ratio.interval
    if hi > _WIDEST * lo:
        return f"against {name} undecided: {ratio.rounds} rounds were too few"
    doubt = "" if ratio.significant else ", not significant"
    return f"{ratio.ratio:.2f}× [{lo:.2f}, {hi:.2f}] {name}{doubt}"


def _exact(comparison: Comparison) -> str:
    """What exact arithmetic gains over the static baseline."""
    if comparison.ratio is None or not comparison.ratio.rounds:
        return ""
    lo, hi = comparison.ratio.interval
    gain = f"{comparison.ratio.ratio:.2f}× [{lo:.2f}, {hi:.2f}] {comparison.name}"
    return f"exact fp32 alone, {comparison.policy}: {gain}"


def _none_holds(capacity: Capacity) -> bool:
    return capacity.decided and capacity.rate_qps == 0
