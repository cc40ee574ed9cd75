"""How many queries a second one client may ask, where that is bounded.

A client may ask a second's worth at once, and after that as many as the rate allows; what is
refused costs it nothing. Pure: times are handed in. In the event loop's thread.
"""

from __future__ import annotations

from deeprecsys.protocol.reasons import Reason
from deeprecsys.serving.bounds import over

_ROUNDING_S = 1e-9


class Rates:
    """most_qps: of each client; None: there is no bound."""

    def __init__(self, most_qps: float | None) -> None:
        self._most_qps = most_qps
        self._each_s = 1 / most_qps if most_qps else 0.0
        self._ahead_s = max(1.0, self._each_s) + _ROUNDING_S
        self._paid_s: dict[str, float] = {}  # until when each has used up its rate

    def take(self, client: str, now_s: float) -> None:
        """One query more; Refusal if that is too many."""
        if self._most_qps is None:
            return
        paid_s = max(self._paid_s.get(client, now_s), now_s) + self._each_s
        if paid_s - now_s > self._ahead_s:
            message = f"overloaded: one client may ask {self._most_qps:g} queries/s"
            raise over(Reason.OVERLOADED, message, "max-qps-per-client")
        self._paid_s[client] = paid_s

    def sweep(self, now_s: float) -> None:
        """Forgets those that may ask a whole second's worth again."""
        self._paid_s = {who: paid_s for who, paid_s in self._paid_s.items() if paid_s > now_s}


__all__ = ["Rates"]
