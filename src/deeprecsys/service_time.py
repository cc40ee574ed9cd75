"""How long one request of n items takes on one worker.

Knows nothing of models or machines: a law is a function of the number of items. The engine
states the one it measured as a hint (`Facts.service_s`); capacity searches start from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, Policy, UserError


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Mean seconds of a request by its items, and the law around that mean.

    Called with items [n], answers mean seconds [n].
    """

    mean_s: Callable[[FloatArray], FloatArray]
    law: Literal["fixed", "exponential"] = "fixed"

    @classmethod
    def constant(cls, seconds: float) -> Self:
        return cls.linear(seconds, 0.0)

    @classmethod
    def linear(cls, base_s: float, per_item_s: float) -> Self:
        """`base_s + per_item_s * items`."""
        if base_s < 0 or per_item_s < 0 or base_s + per_item_s <= 0:
            raise UserError("service time needs base_s >= 0 and per_item_s >= 0, not both 0")
        return cls(lambda items: base_s + per_item_s * items)

    @classmethod
    def exponential(cls, mean_s: float) -> Self:
        """Exponentially distributed, whatever the size."""
        return cls(cls.linear(mean_s, 0.0).mean_s, "exponential")

    @classmethod
    def table(cls, items: NDArray[Any], seconds: NDArray[Any]) -> Self:
        """Measured points, linear between them and, by the last two, beyond them."""
        x, y = np.asarray(items, float), np.asarray(seconds, float)
        if x.size == 1:
            return cls.linear(0.0, float(y[0] / x[0]))
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])

        def mean_s(n: FloatArray) -> FloatArray:
            beyond = np.maximum(np.asarray(n, float) - x[-1], 0.0)
            return np.asarray(np.interp(n, x, y) + slope * beyond)

        return cls(mean_s)

    def __call__(self, items: FloatArray) -> FloatArray:
        return self.mean_s(np.asarray(items, float))


def query_work_s(
    service_s: Callable[[FloatArray], FloatArray], sizes: NDArray[Any], policy: Policy
) -> FloatArray:
    """Worker-seconds of each query of `sizes` [n] once cut by `policy`: full slices + remainder."""
    full, rest = np.divmod(np.asarray(sizes), policy.batch_size)
    whole = service_s(np.array([float(policy.batch_size)]))[0]
    work: FloatArray = full * whole + np.where(rest > 0, service_s(rest.astype(float)), 0.0)
    return work
