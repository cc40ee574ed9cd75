"""Method "simulated" of a tuning: how long its profile takes.

`adaptive_policy` is a policy from a profile alone.
"""

from __future__ import annotations

import numpy as np

from deeprecsys.core import SLA, Policy
from deeprecsys.machines.service_time import Profile

# Of the time there is, for the profile that simulation draws from.
PROFILE_SHARE, PROFILE_S = 0.25, 12.0
_LEAST_ITEMS, _SHARE_OF_TARGET = 16, 0.25


def adaptive_policy(profile: Profile, sla: SLA) -> Policy:
    """An adaptive policy from a profile alone; nothing is searched.

    At most the batch size with the most items a second, and none that takes more than a quarter
    of the target by itself; at least 16 items, below which fixed costs rule.
    """
    items, seconds = profile.mean_s(max(profile.busy_levels))
    brief = np.flatnonzero(seconds <= _SHARE_OF_TARGET * sla.latency_s)
    if not len(brief):
        return Policy(_LEAST_ITEMS, adaptive=True, most_items=_LEAST_ITEMS)
    most = int(items[brief[np.argmax(items[brief] / seconds[brief])]])
    return Policy(_LEAST_ITEMS, adaptive=True, most_items=max(most, _LEAST_ITEMS))


def profile_seconds(budget_s: float | None) -> float:
    return PROFILE_S if budget_s is None else min(PROFILE_S, PROFILE_SHARE * budget_s)
