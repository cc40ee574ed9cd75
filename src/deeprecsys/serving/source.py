"""Where a server's models come from, and what is asked of them: values alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from deeprecsys.engine import Engine
from deeprecsys.serving.hosted import VERSION, Served


@dataclass(frozen=True, slots=True)
class Limits:
    """What a new version must keep to. slower: its p95 over that of the version it is to replace,
    both of the same queries; None: any. kept: versions in memory beside the one that serves."""

    slower: float | None = 1.5
    kept: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's versions come from.

    open: a version, on the workers of an engine (None: the first), with a weight; UserError.
    versions: those that may be loaded, the newest last. bytes: of memory that one will take.
    """

    served: Served
    open: Callable[[str, Engine | None, float], Engine]
    versions: Callable[[], Sequence[str]] = lambda: (VERSION,)
    bytes: Callable[[str], int] = lambda version: 0
    start: str | None = None  # the version to begin with; None: the newest
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def one(cls, served: Served, open: Callable[[], Engine]) -> Self:
        """A model of one version, that has the workers of its engine for itself."""
        return cls(served, lambda version, workers_of, weight: open())


@dataclass(frozen=True, slots=True)
class Configured:
    """What a server's files say, read again. apply: of what is not the models'; in the event loop's
    thread, before those; UserError, and nothing is changed."""

    sources: Sequence[Source]
    apply: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a load asks for. version: the newest, unless said. label: "stable", to put it in the
    place of the one that serves; "canary", to have it answer a share of the queries; "shadow", to
    be held against the other over what is kept of the traffic, and never to answer. force: whatever
    its limits say."""

    version: str = ""
    label: str = "stable"
    share: float = 0.0
    force: bool = False


__all__ = ["Asked", "Configured", "Limits", "Source"]
