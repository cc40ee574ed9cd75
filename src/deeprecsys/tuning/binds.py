"""What keeps a policy from more: one sentence, from what was measured.

Pure: the capacity, the runs, and what the system says of itself (`core.Facts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import SLA, Facts, Policy
from deeprecsys.machines.service_time import busy_shares, query_work_s
from deeprecsys.tuning.capacity import Run

# Busier than this at capacity, the cores bind; less, the tail does.
_BUSY = 0.8
# ... if a large query's own work is more than this share of the target; if it is less, the
# machine was slower under load than when its service time was measured.
_LARGE = 0.25


@dataclass(frozen=True, slots=True)
class Binds:
    """kind: one of compute, memory, dispatch, tail, accelerator, generator, unknown."""

    kind: str
    sentence: str


def what_binds(
    facts: Facts, policy: Policy, rate_qps: float, sizes: NDArray[Any], sla: SLA, runs: list[Run]
) -> Binds:
    """Compares the work of a request with the machine's limits; `sizes` is a sample of queries."""
    facts = facts.of(policy)
    if any(run.summary.limited_by == "generator" for run in runs if run.rate_qps > rate_qps):
        lag_ms = max(run.summary.generator_lag_p99_s for run in runs) * 1e3
        return Binds(
            "generator",
            f"generator: it hands queries over up to {lag_ms:.1f} ms late (p99), "
            "and without that lateness the target would hold",
        )
    if facts.service_s is None:
        return Binds("unknown", "unknown: the system does not say how long a request takes")
    work_s = query_work_s(facts.service_s, sizes, policy)
    busy, device = (rate_qps * share for share in busy_shares(facts, sizes, policy))
    if device > max(busy, _BUSY):
        return Binds(
            "accelerator",
            f"accelerator: it would be {min(device, 1.0):.0%} busy at capacity if it always joined "
            f"{policy.most_items} items, the workers {min(busy, 1.0):.0%}",
        )
    large_s = float(np.percentile(work_s, sla.percentile))
    if busy < _BUSY and large_s > _LARGE * sla.latency_s:
        large_ms = large_s * 1e3
        return Binds(
            "tail",
            f"tail: {facts.workers} workers are {busy:.0%} busy at capacity; a p{sla.percentile:g} "
            f"query alone needs {large_ms:.1f} ms of worker time against {sla}",
        )
    return _resource(facts, policy, busy)


def _resource(facts: Facts, policy: Policy, busy: float) -> Binds:
    """Which part of a full request's time is the largest."""
    shares = request_shares(facts, policy)
    said = f"the workers are {min(busy, 1.0):.0%} busy at capacity"
    if not shares:
        return Binds("compute", f"compute: {said}")
    kind = max(shares, key=lambda name: shares[name])
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Binds(
        kind,
        f"{kind}: {said}, and of a request of {policy.batch_size} this machine's limits "
        f"explain {parts}",
    )


def request_shares(facts: Facts, policy: Policy) -> dict[str, float]:
    """Shares of a full request's time: what its arithmetic, its look-ups and inputs, and its
    fixed cost (the time of a request of one item) would take by the measured limits."""
    if facts.service_s is None or facts.limits is None or facts.work is None:
        return {}
    n, work, limits = policy.batch_size, facts.work, facts.limits
    request_s, one_s = facts.service_s(np.array([float(n), 1.0]))
    rows = work.table_bytes / limits.lookup_bytes
    memory_s = n * rows / limits.lookups_per_s + n * work.input_bytes / limits.stream_bytes_per_s
    compute_s = n * work.flops / limits.flops_per_s
    return {
        "memory": memory_s * facts.workers / request_s,
        "compute": compute_s * facts.workers / request_s,
        "dispatch": min(1.0, one_s / request_s),
    }
