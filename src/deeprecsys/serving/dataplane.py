"""What a server does with a query, whatever protocol it came by, and what it says of itself.

HTTP and gRPC are thin adapters in front of this: they translate bytes to a `Call` and an answer, or
a `Refusal`, back to bytes. Finds the model that a query is for (`models`, `hosted`), and keeps what
all of them share: bounds, state, counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprecsys.engine import Engine, Ticket
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.tensors import Array
from deeprecsys.rules import traffic
from deeprecsys.serving.bounds import Bounds, Budget
from deeprecsys.serving.hosted import LAST_PRIORITY, VERSION, Hosted, Served, clock, fault
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.models import Hosting
from deeprecsys.serving.observed import Observed
from deeprecsys.serving.rates import Rates
from deeprecsys.serving.recent import Recent
from deeprecsys.serving.shared_memory import Regions
from deeprecsys.serving.threads import Threads
from deeprecsys.serving.tracing import Trace, Tracing

if TYPE_CHECKING:
    from deeprecsys.serving.native import NativeHttp
    from deeprecsys.serving.record import Recorder
    from deeprecsys.serving.repository import Repository

EXTENSIONS = (
    "binary_tensor_data", "statistics", "model_configuration", "model_repository",
    "system_shared_memory",
)  # fmt: skip


_LOGGED = b"log "  # before what a query is placed by: a canary's share is another


class DataPlane:
    """`state`: "starting" until its models are loaded, "ready", "draining" (it still takes
    queries), "finishing" (on the connections that it has), "ended".

    log: told of failures that are not the client's; with `Served.log_queries`, of queries.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        bounds: Bounds | None = None,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.bounds, self.log = bounds or Bounds(), log
        self.waiting = Budget(self.bounds.waiting_bytes, "max-waiting-mb")
        self.rates = Rates(self.bounds.client_qps)
        self.threads = Threads()
        self.recent = Recent()
        self.recorder: Recorder | None = None
        self.regions = Regions()  # of shared memory
        self.keys = Keys()  # that clients must bring
        self.observed = Observed()  # of all models, and of what asked for none
        self.of_no_model = dict.fromkeys(Reason, 0)  # queries refused
        self.state = "starting"
        self.models = {name: Hosting(name) for name in names}
        self.native: NativeHttp | None = None
        self.repository: Repository | None = None
        self.tracing: Tracing | None = None

    @property
    def administered(self) -> Repository:
        """What loads and unloads; Refusal where nothing does."""
        if self.repository is None:
            raise Refusal(Reason.UNAVAILABLE, "nothing can be loaded here")
        return self.repository

    def open(self) -> None:
        """All of its models are here."""
        self.state = "ready"
        self.observed.workers = next(self.hosted()).engine.workers

    @property
    def engine(self) -> Engine | None:
        """One of those whose workers all models have in common; None while nothing is loaded."""
        if self.state == "starting":
            return None
        return next((hosted.engine for hosted in self.hosted()), None)

    def hosted(self) -> Iterator[Hosted]:
        """Every version of every model in memory."""
        for model in list(self.models.values()):
            yield from list(model.versions.values())

    @property
    def pending(self) -> int:
        """Queries taken and not answered."""
        here = sum(hosted.pending for hosted in self.hosted())
        return here + (self.native.pending if self.native else 0)

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
        """It takes queries; overload does not change that."""
        return self.state == "ready" and self.live

    def is_ready(self, model: str, version: str = "") -> bool:
        return self.ready and self.has_model(model, version) and self.models[model].ready

    def find(self, model: str, version: str, id: str = "", arrived_s: float = 0.0) -> Hosted:
        """Who answers such a query; Refusal if nobody does."""
        found = self.model(model)
        self.serving()
        return found.choose(version, id, arrived_s)

    def model(self, name: str) -> Hosting:
        found = self.models.get(name)
        if found is None:
            served = ", ".join(self.models)
            raise Refusal(Reason.NOT_FOUND, f"unknown model {name[:80]!r}; served: {served}")
        return found

    def infer(self, call: Call, done: Callable[[Array | Refusal], None]) -> Ticket:
        """As `Hosted.infer`, by who answers for its model and version."""
        hosted = call.hosted = self.find(call.model, call.version, call.id, call.arrived_s)
        try:
            return hosted.infer(call, done)
        except Refusal as refusal:
            refusal.hosted = hosted
            raise

    def named(self, call: Call, scores: Array) -> dict[str, Array]:
        """The outputs of an answer that a query wants."""
        return call.hosted.named(call, scores)  # type: ignore[no-any-return]

    def finished(self, call: Call, ticket: Ticket, outcome: Array | Refusal) -> None:
        """Whoever took `done` says so here, in the event loop's thread."""
        now_s = clock()
        self.observed.finished(call, ticket, outcome, now_s)
        call.hosted.finished(call, ticket, outcome, now_s)
        if not isinstance(outcome, Refusal):
            self.recent.add(call)
            if self.recorder is not None:
                one = np.array([call.arrived_s]), np.array([len(outcome)])
                self.recorder.answered(call.model, *one)
        if self.tracing is not None and call.trace is not None:
            self.tracing.finished(call, ticket, outcome, now_s)
        if _is_logged(call, outcome):
            self.log("query", **_said(call, ticket, outcome, now_s))
        elif isinstance(outcome, Refusal):
            self._log_failure(outcome, call.id)

    def refused(
        self,
        refusal: Refusal,
        *,
        query: bool,
        model: str = "",
        trace: Trace | None = None,
        arrived_s: float = 0.0,
    ) -> None:
        """A request that no query came of. query: it asked for inference, of that model. In the
        loop's thread."""
        self.observed.refused(refusal, query=query)
        asked, hosted = self.models.get(model), refusal.hosted
        if hosted is None and asked is not None and asked.ready:
            hosted = asked.stable
        if query and hosted is not None:
            hosted.observed.refused(refusal, query=True)
        elif query:
            self.of_no_model[refusal.reason] += 1
        if self.tracing is not None and trace is not None:
            self.tracing.refused(trace, refusal, hosted, arrived_s, clock())
        if query and self.logs_queries:
            self.log("query", id="", status=refusal.reason.status, why=refusal.message)
        elif refusal.bound != "max-connections":  # which are logged once a second
            self._log_failure(refusal, "")

    @property
    def logs_queries(self) -> bool:
        return any(hosted.served.log_queries for hosted in self.hosted())

    def failed_natively(self, refusal: Refusal, id: str) -> None:
        """A query that needed no Python ended so. In the loop's thread."""
        self._log_failure(refusal, id)

    def bounded(self, option: str) -> None:
        """A connection was ended by this bound, without an answer. In the loop's thread."""
        self.observed.bounded(option)

    def fault(self, error: BaseException, path: str = "") -> None:
        """A fault of ours."""
        fault(self.log, error, path)

    def _log_failure(self, refusal: Refusal, id: str) -> None:
        if refusal.reason.status >= 500:
            self.log("failed", id=id, status=refusal.reason.status, why=refusal.message)

    def serving(self) -> None:
        """Refusal unless queries are taken."""
        if self.state == "starting":
            raise Refusal(Reason.UNAVAILABLE, "the model is being loaded")
        if self.state == "ended":
            raise Refusal(Reason.UNAVAILABLE, "the server is shutting down")

    def has_model(self, name: str, version: str = "") -> bool:
        try:
            self.check_model(name, version)
        except Refusal:
            return False
        return True

    def check_model(self, name: str, version: str = "") -> None:
        """Refusal for one that there is not."""
        hosting = self.model(name)
        if hosting.ready:
            hosting.choose(version)

    def server_metadata(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "name": "deeprecsys",
            "version": version("deeprecsys"),
            "extensions": list(EXTENSIONS),
        }

    def model_metadata(self, model: str, version: str = "") -> dict[str, Any]:
        versions = list(self.model(model).versions)
        return self.find(model, version).metadata() | {"versions": versions}

    def model_config(self, model: str, version: str = "") -> dict[str, Any]:
        return self.find(model, version).config()

    def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        """Of one model, or of all."""
        self.seen()
        if model:
            chosen = self.model(model).versions
            found = [self.find(model, version)] if version else list(chosen.values())
        else:
            found = list(self.hosted())
        return {"model_stats": [hosted.statistics() for hosted in found]}

    def index(self) -> list[dict[str, str]]:
        if self.state == "ready":
            return [row for model in self.models.values() for row in model.index()]
        return [
            {"name": name, "version": VERSION, "state": "UNAVAILABLE", "reason": self.state}
            for name in self.models
        ]


def _is_logged(call: Call, outcome: Array | Refusal) -> bool:
    """Has its line in the log: by its id, so that every server of a fleet chooses the same."""
    served: Served = call.hosted.served
    if not served.log_queries or isinstance(outcome, Refusal):
        return served.log_queries
    return traffic.place(_LOGGED + traffic.key(call.id, call.arrived_s)) < served.log_share


def _said(call: Call, ticket: Ticket, outcome: Array | Refusal, now_s: float) -> dict[str, Any]:
    """A query's line in the log."""
    ok = not isinstance(outcome, Refusal)
    return {
        "id": call.id,
        "model": call.model,
        "version": call.hosted.version,
        "status": 200 if ok else outcome.reason.status,  # type: ignore[union-attr]
        "items": len(ticket.query.scores),
        "took_ms": round((now_s - call.arrived_s) * 1e3, 3),
        "queue_ms": round((ticket.start_s - call.parsed_s) * 1e3, 3) if ok else None,
        "compute_ms": round((ticket.finish_s - ticket.start_s) * 1e3, 3) if ok else None,
        **({"trace": f"{call.trace.trace_id:032x}"} if call.trace is not None else {}),
    }


__all__ = ["EXTENSIONS", "LAST_PRIORITY", "VERSION", "DataPlane", "Served", "clock"]
