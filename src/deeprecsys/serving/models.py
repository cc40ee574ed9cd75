"""What answers for a model's name: its versions in memory, which of them is meant, and the state
that clients are told. Values and choices only; `repository` loads and frees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.rules.traffic import key, takes_other
from deeprecsys.serving.hosted import Hosted

LABELS = ("stable", "canary")


@dataclass(frozen=True, slots=True)
class Traffic:
    """stable: the version that answers queries which ask for none. canary: answers a share of
    them; None: nobody does."""

    stable: str
    canary: str | None = None
    share: float = 0.0


@dataclass(slots=True)
class Hosting:
    """versions: those that are in memory, in the order in which they were loaded. state, reason:
    of what is neither (while it loads, or why it could not)."""

    name: str
    versions: dict[str, Hosted] = field(default_factory=dict)
    traffic: Traffic | None = None
    shadow: str | None = None  # a version that is held against the stable one, and answers nobody
    loading: str = ""  # a version that is being loaded
    failed: dict[str, str] = field(default_factory=dict)  # why, by version

    @property
    def ready(self) -> bool:
        return self.traffic is not None

    @property
    def stable(self) -> Hosted:
        """Refusal while there is none."""
        if self.traffic is None:
            raise Refusal(Reason.UNAVAILABLE, "the model is being loaded")
        return self.versions[self.traffic.stable]

    def choose(self, version: str, id: str = "", arrived_s: float = 0.0) -> Hosted:
        """By version or label; with neither the stable one, or the canary for its share of ids.
        Refusal where there is no such version."""
        stable, traffic = self.stable, self.traffic
        assert traffic is not None
        chosen = version == "" and traffic.canary is not None
        if chosen and takes_other(key(id, arrived_s), traffic.share):
            version = "canary"
        if version in ("", "stable"):
            return stable
        if version == "canary" and traffic.canary is not None:
            return self.versions[traffic.canary]
        found = self.versions.get(version)
        if found is None:
            has = ", ".join(self.versions)
            raise Refusal(Reason.NOT_FOUND, f"{self.name} has version {has}, not {version[:20]!r}")
        return found

    def index(self) -> list[dict[str, str]]:
        """As the protocol lists it: a row a version."""
        rows = [
            {"name": self.name, "version": version, "state": "READY", "reason": ""}
            for version in self.versions
        ]
        for version, reason in self.failed.items():
            rows.append(
                {"name": self.name, "version": version, "state": "UNAVAILABLE", "reason": reason}
            )
        if self.loading:
            row = {"name": self.name, "version": self.loading, "state": "LOADING", "reason": ""}
            rows.append(row)
        return rows

    def without_canary(self) -> Traffic | None:
        return None if self.traffic is None else replace(self.traffic, canary=None, share=0.0)


__all__ = ["LABELS", "Hosting", "Traffic"]
