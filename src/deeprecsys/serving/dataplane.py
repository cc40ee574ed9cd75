"""The protocol-neutral core of the server: a call in, scores or a reason out.

Knows an engine and what the model's inputs are; nothing of HTTP, gRPC, JSON or sockets, whose
adapters call it from one thread, the event loop's. Answers come from the engine's workers.
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

from deeprecsys.artifacts.model import ModelFailed
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
from deeprecsys.serving.bounds import Bounds, Budget, over
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.observed import Observed
from deeprecsys.serving.rates import Rates
from deeprecsys.serving.shared_memory import Regions
from deeprecsys.serving.threads import Threads

if TYPE_CHECKING:
    from deeprecsys.serving.native import NativeHttp

VERSION = "1"
# The protocol's priorities: 1 goes first; 0, none given, stands in the middle.
LAST_PRIORITY, _USUAL_PRIORITY = 9, 5
_LONGEST_US = 86_400_000_000  # a `timeout` beyond a day is one of a day
EXTENSIONS = (
    "binary_tensor_data", "statistics", "model_configuration", "model_repository",
    "system_shared_memory",
)  # fmt: skip

clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and under which rules.

    deadline_s: of a query that brings none (None: it has no deadline). admit: turn away at once
    what would be late. longest_s: of one request on one worker, before it counts as hung.
    """

    name: str
    policy: Policy
    sla: SLA
    deadline_s: float | None
    admit: bool = True
    longest_s: float = 30.0
    log_queries: bool = False


class DataPlane:
    """`state`: "starting" until `open`, "ready", "draining" (it still takes queries), "finishing"
    (on the connections that it has), "ended".

    log: told of failures that are not the client's; with `Served.log_queries`, of every query.
    """

    def __init__(
        self,
        served: Served,
        bounds: Bounds | None = None,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.served, self.bounds, self.log = served, bounds or Bounds(), log
        self.waiting = Budget(self.bounds.waiting_bytes, "max-waiting-mb")
        self.rates = Rates(self.bounds.client_qps)
        self.threads = Threads()
        self.regions = Regions()  # of shared memory
        self.keys = Keys()  # that clients must bring
        self.observed = Observed()
        self.state = "starting"
        self.engine: Engine | None = None
        self.infer_path = f"/v2/models/{served.name}/infer"
        self._lock = threading.Lock()
        self._taken = self._finished = 0  # queries
        self.native: NativeHttp | None = None

    def open(self, engine: Engine) -> None:
        self.engine = engine
        self.inputs: tuple[InputSpec, ...] = engine.model.inputs
        self._datatypes = {spec.name: spec.datatype for spec in self.inputs}
        self._answer = Answer(engine.model.outputs)
        self._outputs = {*(output.name for output in engine.model.outputs), ""}
        self.observed.workers = engine.workers
        self.state = "ready"

    @property
    def pending(self) -> int:
        """Queries taken and not answered."""
        return self._taken - self._finished + (self.native.pending if self.native else 0)

    def seen(self) -> Observed:
        """What was observed until now, also of what needed no Python."""
        if self.native is not None:
            self.native.collect()
        return self.observed

    @property
    def live(self) -> bool:
        return self.engine is None or self.engine.load().alive

    @property
    def ending(self) -> bool:
        """The time to drain is over: whoever only watches may go."""
        return self.state in ("finishing", "ended")

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self.live

    def infer(self, call: Call, done: Callable[[Array | Refusal], None]) -> Ticket:
        """Takes the query, or raises Refusal; from any thread. `done` is called once, from any
        thread, perhaps before this returns."""
        self.check_model(call.model, call.version)
        engine = self.serving()
        if call.outputs is not None and (other := call.outputs.keys() - self._outputs):
            names = ", ".join(output.name for output in self._answer.outputs)
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
        try:
            ticket = engine.offer(
                call.inputs,
                served.policy,
                left_s,
                priority=priority,
                client=call.client,
                admit=served.admit,
                done=lambda answer: done(self._outcome(answer)),
            )
        except UserError as error:
            raise invalid(str(error)) from None
        except TooLate as error:
            raise Refusal(Reason.OVERLOADED, f"overloaded: {error}") from None
        except QueueFull as error:
            raise Refusal(Reason.OVERLOADED, f"overloaded: {error}") from None
        except EngineClosed:
            raise Refusal(Reason.UNAVAILABLE, "the server is shutting down") from None
        with self._lock:
            self._taken += 1
        return ticket

    def asked_for(self, call: Call) -> list[str]:
        """The outputs that a query wants, in the order in which it wants them: all, unless said."""
        wanted = [name for name in call.outputs or () if name]
        return wanted or [output.name for output in self._answer.outputs]

    def named(self, call: Call, scores: Array) -> dict[str, Array]:
        """Those outputs of an answer."""
        every = self._answer.split(scores)
        return {name: every[name] for name in self.asked_for(call)}

    def finished(self, call: Call, ticket: Ticket, outcome: Array | Refusal) -> None:
        """Whoever took `done` says so here, in the event loop's thread."""
        self._finished += 1
        now_s = clock()
        self.observed.finished(call, ticket, outcome, now_s)
        if self.served.log_queries:
            self.log("query", **_said(call, ticket, outcome, now_s))
        elif isinstance(outcome, Refusal):
            self._log_failure(outcome, call.id)

    def refused(self, refusal: Refusal, *, query: bool) -> None:
        """A request that no query came of. query: it asked for inference. In the loop's thread."""
        self.observed.refused(refusal, query=query)
        if query and self.served.log_queries:
            self.log("query", id="", status=refusal.reason.status, why=refusal.message)
        elif refusal.bound != "max-connections":  # which are logged once a second
            self._log_failure(refusal, "")

    def failed_natively(self, refusal: Refusal, id: str) -> None:
        """A query that needed no Python ended so. In the loop's thread."""
        self._log_failure(refusal, id)

    def bounded(self, option: str) -> None:
        """A connection was ended by this bound, without an answer. In the loop's thread."""
        self.observed.bounded(option)

    def fault(self, error: BaseException, path: str = "") -> None:
        """A fault of ours, or of the model."""
        text = "".join(traceback.format_exception(error))
        self.log("fault", error=repr(error), path=path, traceback=text[-4000:])

    def _log_failure(self, refusal: Refusal, id: str) -> None:
        if refusal.reason.status >= 500:
            self.log("failed", id=id, status=refusal.reason.status, why=refusal.message)

    def serving(self) -> Engine:
        """The engine; Refusal unless it takes queries."""
        if self.state == "starting" or self.engine is None:
            raise Refusal(Reason.UNAVAILABLE, "the model is being loaded")
        if self.state == "ended":
            raise Refusal(Reason.UNAVAILABLE, "the server is shutting down")
        return self.engine

    def has_model(self, name: str, version: str = "") -> bool:
        return name == self.served.name and version in ("", VERSION)

    def check_model(self, name: str, version: str = "") -> None:
        if name != self.served.name:
            raise Refusal(
                Reason.NOT_FOUND, f"unknown model {name[:80]!r}; served: {self.served.name}"
            )
        if version not in ("", VERSION):
            raise Refusal(Reason.NOT_FOUND, f"{name} has version {VERSION}, not {version[:20]!r}")

    def server_metadata(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "name": "deeprecsys",
            "version": version("deeprecsys"),
            "extensions": list(EXTENSIONS),
        }

    def model_metadata(self) -> dict[str, Any]:
        engine = self.serving()
        inputs = [
            {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}
            for spec in self.inputs
        ]
        outputs = [
            {"name": output.name, "datatype": output.datatype, "shape": [-1, *output.shape]}
            for output in self._answer.outputs
        ]
        return {
            "name": self.served.name,
            "versions": [VERSION],
            "platform": f"deeprecsys_{engine.runtime.name}",
            "inputs": inputs,
            "outputs": outputs,
        }

    def model_config(self) -> dict[str, Any]:
        """Triton's form; `parameters` say what the protocol has no words for: each table's rows,
        which inputs may come with one row for all candidates, policy, execution, target; of a
        user's own model also which output is the score, what it is and of which tasks."""
        meta = self.model_metadata()
        said: dict[str, Any] = {
            "workers": self.serving().workers,
            "policy": self.served.policy.to_json(),
            "execution": str(self.served.policy.execution),
            "sla": str(self.served.sla),
            **getattr(self.serving().model, "said", {}),  # of a user's own
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
        executed = self.engine.load().requests if self.engine else 0
        about = {"name": self.served.name, "version": VERSION}
        return {"model_stats": [about | self.seen().statistics(executed)]}

    def index(self) -> list[dict[str, str]]:
        state = "READY" if self.state == "ready" else "UNAVAILABLE"
        reason = "" if self.state == "ready" else self.state
        return [{"name": self.served.name, "version": VERSION, "state": state, "reason": reason}]

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
        most = self.bounds.candidates
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
                self.fault(answer, "the model")
                return Refusal(Reason.INTERNAL, f"the model failed: {answer}")
            case BaseException():
                self.fault(answer, "the model")
                return Refusal(Reason.INTERNAL, f"the model failed: {type(answer).__name__}")
        return answer


def _priority(call: Call) -> int:
    priority = call.parameters.get("priority", 0)
    if priority == 0 and not isinstance(priority, bool):
        return _USUAL_PRIORITY
    if not isinstance(priority, int) or priority not in range(1, LAST_PRIORITY + 1):
        raise invalid("parameter priority must be 1 (first) to 9 (last), or 0 for none")
    return priority


def _said(call: Call, ticket: Ticket, outcome: Array | Refusal, now_s: float) -> dict[str, Any]:
    """A query's line in the log."""
    ok = not isinstance(outcome, Refusal)
    return {
        "id": call.id,
        "status": 200 if ok else outcome.reason.status,  # type: ignore[union-attr]
        "items": len(ticket.query.scores),
        "took_ms": round((now_s - call.arrived_s) * 1e3, 3),
        "queue_ms": round((ticket.start_s - call.parsed_s) * 1e3, 3) if ok else None,
        "compute_ms": round((ticket.finish_s - ticket.start_s) * 1e3, 3) if ok else None,
    }
