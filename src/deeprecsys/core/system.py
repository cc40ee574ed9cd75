"""What executes: a model (`Servable`), and what a policy is tried on (`System`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core.inputs import InputSpec, OutputSpec
from deeprecsys.core.policy import SLA, Execution, Policy
from deeprecsys.core.records import Records, Schedule
from deeprecsys.core.values import FloatArray, Inputs


class Servable(Protocol):
    """What runtimes, engine, server and verbs need of a model: one of the zoo, or a user's own."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def outputs(self) -> tuple[OutputSpec, ...]: ...
    @property
    def tasks(self) -> int:
        """K: columns of the score."""
        ...

    @property
    def target(self) -> SLA | None: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def work(self) -> Work | None:
        """What one candidate asks for; None where nobody can tell."""
        ...

    @property
    def tables(self) -> Sequence[tuple[int, int]] | None:
        """Rows of each table, and the bytes of a row; None where nobody can tell."""
        ...

    @property
    def whole(self) -> bool:
        """Cutting a query would change its scores, so none is cut."""
        ...

    @property
    def most_items(self) -> int | None:
        """Of one request; None: any."""
        ...

    def check(self, inputs: Inputs) -> int:
        """The number of candidates N; UserError if these are not the model's inputs."""
        ...

    def example(
        self, n: int, rng: np.random.Generator, index_law: Any = None, users: int = 1
    ) -> Mapping[str, NDArray[Any]]:
        """Inputs of n candidates, and of `users` rows where a query has one."""
        ...

    def reference(self, inputs: Inputs) -> NDArray[Any]:
        """What every runtime must answer, in one array (`Answer`)."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine can do per second with all workers busy, one thread each, measured."""

    flops_per_s: float
    lookups_per_s: float
    lookup_bytes: int
    stream_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one candidate item asks of a machine: arithmetic, table look-ups, bytes."""

    flops: float
    lookups: float
    table_bytes: float
    input_bytes: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a system says of itself.

    service_s: estimated seconds of one request of n items on one worker, or None if unknown.
    virtual: its time is computed, not waited for, and no neighbour can disturb it.
    accelerators: seconds of one request of n items on each, or empty where there is none.
    whole, most_items: of its model (`Servable`).
    twin: a simulation of it, from what it measured of itself, or None.
    executions: the same of the other ways in which it can execute a request.
    """

    workers: int
    machine: Mapping[str, Any] = field(default_factory=dict)
    service_s: Callable[[FloatArray], FloatArray] | None = None
    limits: Limits | None = None
    work: Work | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    virtual: bool = False
    accelerators: tuple[Callable[[FloatArray], FloatArray], ...] = ()
    whole: bool = False
    most_items: int | None = None
    twin: System | None = None
    executions: Mapping[Execution, Facts] = field(default_factory=dict)

    def of(self, policy: Policy) -> Facts:
        """Under this policy's execution."""
        return self.executions.get(policy.execution, self)


# Sees the records so far and the time since the run began; answers True to stop the run.
Watch = Callable[[Records, float], bool]


class System(Protocol):
    """Anything that runs a schedule under a policy: engine, simulator, remote server."""

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        """Runs it all, or until `watch` says stop; then what did not finish is CANCELLED."""
        ...

    def facts(self) -> Facts: ...

    def disturbance(self) -> float:
        """The share of the cores that others used during the last run; 0 where nobody can."""
        ...
