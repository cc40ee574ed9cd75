"""One version of a model as it is served: what a query of it must be, and what became of each.

Knows no protocol and no other model; `dataplane` finds the one that a query is for.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprecsys.artifacts import ModelFailed
from deeprecsys.core import SLA, Answer, InputSpec, Policy, UserError
from deeprecsys.engine import (
    DeadlineExceeded,
    Engine,
    EngineClosed,
    Ticket,
    TooLate,
    WorkerLost,
)
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Array
from deeprecsys.rules.dispatch import QueueFull
from deeprecsys.serving.bounds import over
from deeprecsys.serving.observed import Observed

if TYPE_CHECKING:
    from deeprecsys._native import Service

VERSION = "1"
# The protocol's priorities: 1 goes first; 0, none given, stands in the middle.
LAST_PRIORITY, _USUAL_PRIORITY = 9, 5
_LONGEST_US = 86_400_000_000  # a `timeout` beyond a day is one of a day

clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and under which rules.

    deadline_s: of a query that brings none (None: it has no deadline). admit: turn away at once
    what would be late. longest_s: of one request on one worker, before it counts as hung. weight:
    of its share of the workers, beside other models. log_queries: a line of the log for a share,
    log_share, of the queries that were answered, and for all others.
    """

    name: str
    policy: Policy
    sla: SLA
    deadline_s: float | None
    admit: bool = True
    longest_s: float = 30.0
    log_queries: bool = False
    weight: float = 1.0
    log_share: float = 1.0


class Hosted:
    """engine: open. log: told of failures that are not the client's. native: as the core's door
    knows it, where it does."""

    def __init__(
        self,
        served: Served,
        engine: Engine,
        version: str = VERSION,
        most_candidates: int = 65_536,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.served, self.engine, self.version, self.log = served, engine, version, log
        self.inputs: tuple[InputSpec, ...] = engine.model.inputs
        self.answer = Answer(engine.model.outputs)
        self.observed = Observed(served.sla.latency_s)
        self.observed.workers = engine.workers
        self.native: Service | None = None
        self._most_candidates = most_candidates
        self._datatypes = {spec.name: spec.datatype for spec in self.inputs}
        self._outputs = {*(output.name for output in engine.model.outputs), ""}
        self._lock = threading.Lock()
        self._taken = self._finished = 0  # queries

    @property
    def name(self) -> str:
        return self.served.name

    @property
    def pending(self) -> int:
        """Queries taken by Python and not answered."""
        return self._taken - self._finished

    def infer(self, call: Call, done: Callable[[Array | Refusal], None]) -> Ticket:
        """Takes the query, or raises Refusal; from any thread. `done` is called once, from any
        thread, perhaps before this returns."""
        if call.outputs is not None and (other := call.outputs.keys() - self._outputs):
            names = ", ".join(output.name for output in self.answer.outputs)
            raise invalid(f"no output {min(other)!r}: the model has {names}")
        self._check_datatypes(call)
        self._check_size(call)
        deadline_s, priority = self._deadline_s(call), _priority(call)
        call.parsed_s = now = clock()
        until_s = call.until_s if deadline_s is None else call.arrived_s + deadline_s
        until_s = min(until_s, call.until_s)
        left_s = None if until_s == math.inf else until_s - now
        if left_s is not None and left_s <= 0:
            raise Refusal(Reason.DEADLINE, "the deadline passed before the query was read")
        served = self.served
        with self._lock:  # first, so that nobody takes it for idle meanwhile
            self._taken += 1
        try:
            return self._offer(call, served, left_s, priority, done)
        except Refusal:
            with self._lock:
                self._taken -= 1
            raise

    def _offer(
        self,
        call: Call,
        served: Served,
        left_s: float | None,
        priority: int,
        done: Callable[[Array | Refusal], None],
    ) -> Ticket:
        try:
            return self.engine.offer(
                call.inputs,
                served.policy,
                left_s,
                priority=priority,
                client=call.client,
                admit=served.admit,
                traced=call.trace is not None,
                done=lambda answer: done(self._outcome(answer)),
            )
        except UserError as error:
            raise invalid(str(error)) from None
        except (TooLate, QueueFull) as error:
            raise Refusal(Reason.OVERLOADED, f"overloaded: {error}") from None
        except EngineClosed:
            raise Refusal(Reason.UNAVAILABLE, "the server is shutting down") from None

    def asked_for(self, call: Call) -> list[str]:
        """The outputs that a query wants, in the order in which it wants them: all, unless said."""
        wanted = [name for name in call.outputs or () if name]
        return wanted or [output.name for output in self.answer.outputs]

    def named(self, call: Call, scores: Array) -> dict[str, Array]:
        """Those outputs of an answer."""
        every = self.answer.split(scores)
        return {name: every[name] for name in self.asked_for(call)}

    def finished(self, call: Call, ticket: Ticket, outcome: Array | Refusal, now_s: float) -> None:
        """In the event loop's thread."""
        self._finished += 1
        self.observed.finished(call, ticket, outcome, now_s)

    def metadata(self) -> dict[str, Any]:
        inputs = [
            {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}
            for spec in self.inputs
        ]
        outputs = [
            {"name": output.name, "datatype": output.datatype, "shape": [-1, *output.shape]}
            for output in self.answer.outputs
        ]
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": f"deeprecsys_{self.engine.runtime.name}",
            "inputs": inputs,
            "outputs": outputs,
        }

    def config(self) -> dict[str, Any]:
        """Triton's form; `parameters` say what the protocol has no words for: each table's rows,
        which inputs may come with one row for all candidates, policy, execution, target; of a
        user's own model also which output is the score, what it is and of which tasks."""
        meta, engine = self.metadata(), self.engine
        said: dict[str, Any] = {
            "version": self.version,
            "workers": engine.workers,
            "weight": self.served.weight,
            "policy": self.served.policy.to_json(),
            "execution": str(self.served.policy.execution),
            "sla": str(self.served.sla),
            **getattr(engine.model, "said", {}),  # of a user's own
        }
        for spec in self.inputs:
            if spec.rows is not None:
                said[f"rows.{spec.name}"] = spec.rows
            if spec.scope == "query":
                said[f"scope.{spec.name}"] = "query"
            if spec.ragged:
                said[f"ragged.{spec.name}"] = spec.ragged
            if spec.bounds:
                said[f"counts.{spec.name}"] = spec.bounds
        return {
            "name": meta["name"],
            "platform": meta["platform"],
            "backend": "deeprecsys",
            "max_batch_size": 0,
            "input": [
                {"name": i["name"], "data_type": f"TYPE_{i['datatype']}", "dims": i["shape"]}
                for i in meta["inputs"]
            ],
            "output": [
                {"name": o["name"], "data_type": f"TYPE_{o['datatype']}", "dims": o["shape"]}
                for o in meta["outputs"]
            ],
            "parameters": {name: {"string_value": str(value)} for name, value in said.items()},
        }

    def statistics(self) -> dict[str, Any]:
        about = {"name": self.name, "version": self.version}
        return about | self.observed.statistics(self.engine.load().requests)

    def _check_datatypes(self, call: Call) -> None:
        for name, datatype in call.datatypes.items():
            expected = self._datatypes.get(name)
            if expected is not None and datatype != expected:
                raise invalid(f"input {name} is {expected}, not {datatype[:20]}")

    def _deadline_s(self, call: Call) -> float | None:
        """Parameter `timeout`, in microseconds; 0 and none: the server's own."""
        timeout = call.parameters.get("timeout", 0)
        if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
            raise invalid("parameter timeout must be a whole number of microseconds")
        if timeout >= 1 << 63:
            raise invalid("parameter timeout must be under 2^63 microseconds")
        return min(timeout, _LONGEST_US) / 1e6 if timeout else self.served.deadline_s

    def _check_size(self, call: Call) -> None:
        most = self._most_candidates
        for spec in self.inputs:
            column = call.inputs.get(spec.name)
            if spec.scope == "candidate" and column is not None:
                if column.ndim and len(column) > most:
                    message = f"a query has at most {most} candidates, not {len(column)}"
                    raise over(Reason.TOO_LARGE, message, "max-candidates")
                return

    def _outcome(self, answer: Array | BaseException) -> Array | Refusal:
        match answer:
            case CancelledError():
                return Refusal(Reason.CANCELLED, "the query was cancelled")
            case DeadlineExceeded():
                return Refusal(Reason.DEADLINE, "the deadline passed before the query was finished")
            case WorkerLost():
                return Refusal(Reason.UNAVAILABLE, f"{answer}; it has been replaced: ask again")
            case EngineClosed():
                return Refusal(Reason.UNAVAILABLE, "the server is shutting down")
            case ModelFailed():
                fault(self.log, answer, "the model")
                return Refusal(Reason.INTERNAL, f"the model failed: {answer}")
            case BaseException():
                fault(self.log, answer, "the model")
                return Refusal(Reason.INTERNAL, f"the model failed: {type(answer).__name__}")
        return answer


def fault(log: Callable[..., None], error: BaseException, path: str = "") -> None:
    """A fault of ours, or of the model."""
    text = "".join(traceback.format_exception(error))
    log("fault", error=repr(error), path=path, traceback=text[-4000:])


def _priority(call: Call) -> int:
    priority = call.parameters.get("priority", 0)
    if priority == 0 and not isinstance(priority, bool):
        return _USUAL_PRIORITY
    if not isinstance(priority, int) or priority not in range(1, LAST_PRIORITY + 1):
        raise invalid("parameter priority must be 1 (first) to 9 (last), or 0 for none")
    return priority


__all__ = ["LAST_PRIORITY", "VERSION", "Hosted", "Served", "clock", "fault"]
