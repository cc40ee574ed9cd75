"""Systems that execute one model on the same cores, each in its own way, as one system.

A policy's execution says which of them runs; the others are idle meanwhile. Knows nothing of
engines: it is handed what to combine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deeprecsys.core import Execution, Facts, Policy, Records, Requests, Schedule, UserError, Watch


class Together:
    """`systems` by execution, the model's own way first; what it says of itself is the first's."""

    def __init__(self, systems: Mapping[Execution, Any]) -> None:
        self.systems = dict(systems)
        self._first = self._last = next(iter(self.systems.values()))
        self._facts: Facts | None = None

    @property
    def model(self) -> Any:
        return self._first.model

    def facts(self) -> Facts:
        if self._facts is None:
            first, *others = self.systems
            said = {execution: self.systems[execution].facts() for execution in others}
            self._facts = replace(self.systems[first].facts(), executions=said)
        return self._facts

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        records: Records = self._of(policy).run(schedule, policy, watch=watch)
        return records

    def traced_run(
        self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None
    ) -> tuple[Records, Requests]:
        found: tuple[Records, Requests] = self._of(policy).traced_run(
            schedule, policy, **({} if watch is None else {"watch": watch})
        )
        return found

    def disturbance(self) -> float:
        return float(self._last.disturbance())

    def joules(self) -> dict[str, float]:
        """Of the last run, where the system that ran has a meter."""
        return self._last.joules() if hasattr(self._last, "joules") else {}

    def lost(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for system in self.systems.values():
            found |= system.lost() if hasattr(system, "lost") else {}
        return found

    def pool_facts(self) -> dict[str, Any]:
        return self._first.pool_facts() if hasattr(self._first, "pool_facts") else {}

    def _of(self, policy: Policy) -> Any:
        """UserError for an execution that none of them has."""
        if policy.execution not in self.systems:
            known = "; ".join(str(execution) for execution in self.systems)
            raise UserError(f"nothing here executes {policy.execution}; known: {known}")
        self._last = self.systems[policy.execution]
        return self._last
