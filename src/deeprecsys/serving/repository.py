"""The models of a server over its life: opened, new versions loaded beside those that serve, put in
their place between two queries, kept for a rollback, and freed.

All of that happens in threads of the lowest priority, so that it takes from the workers only what
they leave. A version answers nobody before it has passed: it must take what the other takes, give
scores, and not be slower than `Limits` lets it. What does not pass never serves, and what serves is
left as it was. Knows no protocol; `artifacts.versions` knows folders.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from deeprecsys.core import UserError
from deeprecsys.engine import Engine
from deeprecsys.models.memory import available_bytes
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.serving.dataplane import DataPlane
from deeprecsys.serving.hosted import Hosted, Served, clock
from deeprecsys.serving.lowly import areas, be_lowly, give_back_slowly, paced
from deeprecsys.serving.models import Hosting, Traffic
from deeprecsys.serving.native import executor_of
from deeprecsys.serving.shadow import Compared, compare
from deeprecsys.serving.source import Asked, Configured, Limits, Source
from deeprecsys.serving.warming import warm_up

# Of a version that is not in use yet: its requests go behind everybody's.
_LOADING = 0.01
_EVENTS = 50
# Of one core, what loading may take.
LOAD_SHARE = 0.1
_POLL_S, _GRACE_S, _FREE_S, _SHADOW_S = 0.02, 1.0, 60.0, 0.25


class Repository:
    """in_loop: does something in the event loop's thread, and waits for it."""

    def __init__(
        self,
        plane: DataPlane,
        sources: Sequence[Source],
        in_loop: Callable[[Callable[[], Any]], Any],
        log: Callable[..., None],
        load_share: float = LOAD_SHARE,
        read: Callable[[], Configured] | None = None,
    ) -> None:
        """load_share: of one core, what loading and freeing may take. read: the server's files
        again; None: there are none."""
        self._read = read
        self._load_share = load_share
        self._plane, self._in_loop, self._log = plane, in_loop, log
        self._sources = {source.served.name: source for source in sources}
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._loader: threading.Thread | None = None
        self._futures: list[Future[None]] = []  # of what was asked
        self._events: dict[str, deque[dict[str, Any]]] = {}
        self._shadows: dict[str, Compared] = {}
        self._closed = False

    def open_all(self) -> list[Hosted]:
        """The first version of each, warm; the first one's workers are everybody's."""
        opened: list[Hosted] = []
        try:
            for name, source in self._sources.items():
                version = source.start or _newest(name, source)
                first = opened[0].engine if opened else None
                engine = source.open(version, first, source.served.weight)
                opened.append(self._hosted(source.served, engine, version))
                warm_up(engine, source.served.policy)
        except BaseException:
            for hosted in opened:
                hosted.engine.close(drain=False)
            raise
        return opened

    def host(self, hosted: Hosted) -> None:
        """It serves from now on. In the event loop's thread, before anything is asked for."""
        model = self._plane.models[hosted.name]
        model.versions[hosted.version] = hosted
        model.traffic = Traffic(hosted.version)

    def close(self) -> None:
        """Nothing is loaded any more."""
        self._closed = True
        self._asked.put(lambda: None)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What happened to a model's versions, the latest last."""
        return list(self._events.get(name, ()))

    def shadow(self, name: str) -> Compared | None:
        """What is known of a model's version that is held against the one that serves."""
        model = self._plane.models.get(name)
        return self._shadows.get(name) if model is not None and model.shadow is not None else None

    @property
    def busy(self) -> bool:
        """Does it load or unload?"""
        return not all(done.done() for done in self._futures)

    def submit(self, act: Callable[[], None]) -> Future[None]:
        """Does one after the other of what is asked for, in one thread: `load` and `unload`. In the
        event loop's thread."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        if self._loader is None:
            self._loader = threading.Thread(target=self._work, name="loader", daemon=True)
            self._loader.start()
        self._futures = [one for one in self._futures if not one.done()] + [done]
        self._asked.put(run)
        return done

    def _work(self) -> None:
        """One thread for all, so that what malloc keeps for it is kept once."""
        be_lowly()
        while not self._closed:
            self._asked.get()()

    # What operators ask for, in that thread; each raises Refusal and then nothing is other than it
    # was.

    def load(self, name: str, asked: Asked) -> None:
        """A version, as asked for; one that is in memory at once."""
        model, source = self._known(name)
        version = asked.version or self._offered(name, source)
        hosted = model.versions.get(version)
        if hosted is None:
            hosted = self._load(model, source, version, asked)
        else:
            hosted.engine.weigh(source.served.weight)
        self._put(model, hosted, asked)
        self._say(name, "switched" if asked.label == "stable" else asked.label, version,
                  **({"share": asked.share} if asked.label == "canary" else {}))  # fmt: skip
        self._drop_old(model, source)

    def unload(self, name: str, version: str = "") -> None:
        """Frees a version; unless said, all but the one that serves."""
        model, _ = self._known(name)
        stable = model.stable.version
        if version and version not in model.versions:
            raise Refusal(Reason.NOT_FOUND, f"{name} has no version {version[:20]!r} in memory")
        others = [v for v in model.versions if v != stable]
        gone = [version] if version else others
        if version == stable or not gone:
            raise invalid(
                f"version {stable} is what answers for {name}: load another version first, or "
                "end the server"
            )
        for one in gone:
            self._drop(model, one)

    def reload(self) -> None:
        """The server's files, read again: keys and certificates, policies, targets and weights of
        models, models that are new and such as are gone. Refusal where they are wrong."""
        if self._read is None:
            raise invalid("this server reads no files again")
        try:
            configured = self._read()
            sources = {source.served.name: source for source in configured.sources}
            for name, source in sources.items():
                self._check_same(name, source)
            self._in_loop(configured.apply)
        except UserError as error:
            self._log("reload refused", why=str(error))
            raise invalid(f"nothing was changed: {error}") from None
        for name, source in sources.items():
            if name not in self._sources:
                self._bring(source)
            elif source.served != self._sources[name].served:
                self._renew(source)
            self._sources[name] = source
        for name in [name for name in self._sources if name not in sources]:
            self._take_away(name)
        self._log("reloaded", models=list(sources))

    def _check_same(self, name: str, source: Source) -> None:
        """What cannot change while a model serves."""
        model = self._plane.models.get(name)
        if model is not None and model.ready:
            own = model.stable.engine.execution
            if source.served.policy.execution != own:
                raise UserError(
                    f"{name} is executed {own}, its policy now asks for "
                    f"{source.served.policy.execution}: restart the server for that"
                )

    def _renew(self, source: Source) -> None:
        """A model's policy, target or weight: for queries that come from now on."""
        served, plane = source.served, self._plane
        model = plane.models[served.name]
        executors = {}
        for hosted in model.versions.values():
            hosted.served = served
            hosted.engine.weigh(served.weight)
            hosted.engine.aim(served.sla.percentile)
            executors[hosted] = executor_of(hosted)

        def renew() -> None:
            if plane.native is not None:
                for hosted, executor in executors.items():
                    plane.native.renew(hosted, executor)
                plane.native.route(model)

        self._in_loop(renew)
        self._say(served.name, "renewed", model.stable.version, policy=str(served.policy),
                  sla=str(served.sla), weight=served.weight)  # fmt: skip

    def _bring(self, source: Source) -> None:
        """A model that was not there."""
        served, plane = source.served, self._plane
        version = source.start or _newest(served.name, source)
        self._check_memory(served.name, source, version)
        self._say(served.name, "loading", version)
        try:
            with paced(self._load_share):
                engine = source.open(version, plane.engine, _LOADING)
        except UserError as error:
            self._say(served.name, "refused", version, why=str(error))
            raise invalid(f"{served.name} was not loaded: {error}") from None
        hosted = self._hosted(served, engine, version)
        compare(hosted, hosted, ())
        executor = executor_of(hosted)
        engine.weigh(served.weight)

        def host() -> None:
            plane.models[served.name] = Hosting(served.name)
            self.host(hosted)
            if plane.native is not None:
                plane.native.add(hosted, executor)
                plane.native.route(plane.models[served.name])

        self._in_loop(host)
        self._say(served.name, "loaded", version)

    def _take_away(self, name: str) -> None:
        model, plane = self._plane.models[name], self._plane

        def withdraw() -> None:
            del plane.models[name]
            model.traffic = None
            plane.recent.forget(name)
            if plane.native is not None:
                plane.native.route(model)

        self._in_loop(withdraw)
        for version in list(model.versions):
            self._drop(model, version)
        del self._sources[name]

    def _known(self, name: str) -> tuple[Hosting, Source]:
        self._plane.serving()
        model = self._plane.model(name)
        _ = model.stable
        return model, self._sources[name]

    def _offered(self, name: str, source: Source) -> str:
        try:
            return _newest(name, source)
        except UserError as error:
            raise Refusal(Reason.NOT_FOUND, str(error)) from None

    def _load(self, model: Hosting, source: Source, version: str, asked: Asked) -> Hosted:
        name, began_s = model.name, clock()
        offered = source.versions()
        if version not in offered:
            has = ", ".join(offered) or "none"
            raise Refusal(
                Reason.NOT_FOUND, f"{name} has no version {version[:20]!r}; there are: {has}"
            )
        if model.stable.engine.devices:
            raise Refusal(
                Reason.UNSUPPORTED,
                f"{name} is on an accelerator, where versions do not replace each other: restart",
            )
        self._check_memory(name, source, version)
        model.loading = version
        self._say(name, "loading", version)
        engine = None
        try:
            with paced(self._load_share):
                engine = source.open(version, self._plane.engine, _LOADING)
                hosted = self._hosted(source.served, engine, version)
                compared = self._passes(model.stable, hosted, source.limits, asked)
            executor = executor_of(hosted)
            self._in_loop(lambda: self._add(model, hosted, executor))
        except BaseException as error:
            if engine is not None:
                engine.close(drain=False)
            why = error.message if isinstance(error, Refusal) else str(error)
            model.failed[version] = why
            self._say(name, "refused", version, why=why)
            if isinstance(error, Refusal) or not isinstance(error, Exception):
                raise
            if not isinstance(error, UserError):
                self._plane.fault(error, f"version {version} of {name}")
            line = str(error).strip().partition("\n")[0]
            raise invalid(f"version {version} of {name} was not loaded: {line}") from None
        finally:
            model.loading = ""
        model.failed.pop(version, None)
        self._say(name, "loaded", version, took_s=round(clock() - began_s, 3), **compared.about())
        hosted.engine.weigh(source.served.weight)
        return hosted

    def _hosted(self, served: Served, engine: Engine, version: str) -> Hosted:
        return Hosted(served, engine, version, self._plane.bounds.candidates, self._log)

    def _check_memory(self, name: str, source: Source, version: str) -> None:
        need, free = source.bytes(version), available_bytes()
        if free is not None and need > free:
            raise Refusal(
                Reason.UNAVAILABLE,
                f"version {version} of {name} takes {need / 2**20:,.0f} MB beside what serves, and "
                f"{free / 2**20:,.0f} MB are free: unload a version first",
            )

    def _passes(self, old: Hosted, new: Hosted, limits: Limits, asked: Asked) -> Compared:
        """Held against the one that serves, over the queries that this was asked of late; Refusal
        where it may not take its place."""
        if (why := _differs(old, new)) is not None:
            raise invalid(f"version {new.version} {why}: serve it under another name")
        compared = compare(old, new, self._plane.recent.of(old.name))
        most = math.inf if limits.slower is None or asked.force else limits.slower
        if compared.slower > most:
            raise Refusal(
                Reason.UNAVAILABLE,
                f"version {new.version} takes {compared.slower:.2f} times as long as version "
                f"{old.version} (p95 of {compared.queries} queries), the limit is {most:g}: it "
                "does not serve; load it with force if it shall",
            )
        return compared

    def _add(self, model: Hosting, hosted: Hosted, executor: Any) -> None:
        """In the event loop's thread."""
        model.versions[hosted.version] = hosted
        if self._plane.native is not None:
            self._plane.native.add(hosted, executor)
            self._plane.native.route(model)

    def _put(self, model: Hosting, hosted: Hosted, asked: Asked) -> None:
        """From the next query on. Between two of them: whoever has begun ends where it began."""
        assert model.traffic is not None
        if asked.label == "stable":
            traffic = Traffic(hosted.version)
        elif asked.label == "canary":
            if hosted.version == model.traffic.stable:
                raise invalid(f"version {hosted.version} answers already: it cannot be a canary")
            traffic = replace(model.traffic, canary=hosted.version, share=asked.share)
        else:
            if hosted.version in (model.traffic.stable, model.traffic.canary):
                raise invalid(f"version {hosted.version} answers already: it cannot be a shadow")
            traffic = model.traffic
            self._shadow(model, hosted)

        def put() -> None:
            model.traffic = traffic
            if model.shadow in (traffic.stable, traffic.canary):
                model.shadow = None
            if self._plane.native is not None:
                self._plane.native.route(model)

        self._in_loop(put)

    def _shadow(self, model: Hosting, hosted: Hosted) -> None:
        """Held against the one that serves, over what is kept of the traffic, until it is gone."""
        model.shadow, self._shadows[model.name] = hosted.version, Compared()

        def run() -> None:
            seen_s = clock()
            be_lowly()
            while not self._closed and model.shadow == hosted.version:
                fresh = [k for k in self._plane.recent.of(model.name) if k.arrived_s > seen_s]
                if fresh:
                    seen_s = fresh[-1].arrived_s
                    with suppress(Refusal, UserError), paced(self._load_share):
                        more = compare(model.stable, hosted, fresh, least=0)
                        self._shadows[model.name] = self._shadows[model.name].and_(more)
                time.sleep(_SHADOW_S)

        threading.Thread(target=run, name=f"shadow-{model.name}", daemon=True).start()

    def _drop_old(self, model: Hosting, source: Source) -> None:
        """Beyond those that are kept, the ones loaded first."""
        assert model.traffic is not None
        used = {model.traffic.stable, model.traffic.canary, model.shadow}
        others = [version for version in model.versions if version not in used]
        for version in others[: max(0, len(others) - source.limits.kept)]:
            self._drop(model, version)

    def _drop(self, model: Hosting, version: str) -> None:
        hosted = model.versions[version]

        def withdraw() -> None:
            if model.traffic is not None and model.traffic.canary == version:
                model.traffic = model.without_canary()
            if model.shadow == version:
                model.shadow = None
            del model.versions[version]
            if self._plane.native is not None:
                self._plane.native.withdraw(hosted)
                self._plane.native.route(model)

        self._in_loop(withdraw)
        time.sleep(_GRACE_S)  # whoever has found it a moment ago has begun by now
        until_s = clock() + _FREE_S
        while hosted.pending or not self._forgotten(hosted):
            if clock() > until_s:
                self._say(model.name, "left behind", version, why="a query of it has not ended")
                return
            time.sleep(_POLL_S)
        _free(hosted, list(self._plane.hosted()))
        self._say(model.name, "freed", version)

    def _forgotten(self, hosted: Hosted) -> bool:
        native = self._plane.native
        return native is None or self._in_loop(lambda: native.forget(hosted))

    def _say(self, name: str, what: str, version: str, **about: Any) -> None:
        event = {"at_s": round(time.time(), 3), "what": what, "version": version, **about}
        self._events.setdefault(name, deque(maxlen=_EVENTS)).append(event)
        self._log(f"version {what}", model=name, version=version, **about)


def _newest(name: str, source: Source) -> str:
    versions = source.versions()
    if not versions:
        raise UserError(f"{name} has no version that is complete")
    return versions[-1]


def _differs(old: Hosted, new: Hosted) -> str | None:
    """How a client would notice: what it takes, or answers."""
    for what, one, other in (
        ("inputs", old.inputs, new.inputs),
        ("outputs", old.answer.outputs, new.answer.outputs),
    ):
        before = {spec.name: (spec.datatype, spec.shape) for spec in one}
        after = {spec.name: (spec.datatype, spec.shape) for spec in other}
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return (
                    f"has other {what} than version {old.version} ({name}: "
                    f"{_form(before.get(name))}, now {_form(after.get(name))})"
                )
    return None


def _form(spec: tuple[str, Sequence[int]] | None) -> str:
    return "none" if spec is None else f"{spec[0]}{list(spec[1])}"


def _free(hosted: Hosted, others: Sequence[Hosted]) -> None:
    """Closes it and gives its memory back, but for what others have as well."""
    model = hosted.engine.model
    kept = {area for other in others for area in areas(other.engine.model)}
    if hosted.engine.close(drain=False):  # else a thread that hangs may still come back to it
        give_back_slowly(sorted(areas(model) - kept))
    hosted.engine.forget()
    gc.collect(1)


__all__ = ["LOAD_SHARE", "Repository"]
