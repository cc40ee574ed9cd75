"""A server's life: probes answer while the model loads, then it is warm and ready, then it drains.

Composes engine, data plane and adapters on one event loop. Knows no protocol. The command line
and the tests start it; `Server.run` returns when it was asked to end and has answered all it took.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from deeprecsys.core import UserError
from deeprecsys.engine import Load, quotas, topology
from deeprecsys.serving import files, log_line, metrics, notify, page, unix
from deeprecsys.serving.bounds import Bounds, give_back
from deeprecsys.serving.dataplane import VERSION, DataPlane, clock
from deeprecsys.serving.hosted import Hosted
from deeprecsys.serving.http_adapter import Connection
from deeprecsys.serving.http_routes import Page
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.native import Handed, open_natively
from deeprecsys.serving.record import Recorder
from deeprecsys.serving.repository import LOAD_SHARE, Repository
from deeprecsys.serving.site import Site
from deeprecsys.serving.source import Configured, Source
from deeprecsys.serving.tls import Certificates
from deeprecsys.serving.tracing import Tracing

_encode = msgspec.json.Encoder().encode
# After the time to drain, what was taken is answered within so long, and what is left is ended.
FINISH_S = 3.0
_SHOWN_S = 0.5
_SPANS_S = 2.0  # in the end, for what a collector has not got yet


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; a port of 0 takes a free one, None leaves the protocol out."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    certificate: str | None = None  # PEM files
    private_key: str | None = None
    key: str | Keys | None = None  # that clients must bring
    client_ca: str | None = None  # PEM file: who signs the certificates that clients must show
    unix: str | None = None  # the paths of Unix sockets beside the ports, of HTTP and of gRPC
    grpc_unix: str | None = None


class Server:
    """Of one model or several, which `sources` open in a thread of their own.

    After `started` is set the ports are known; after `ready`, queries are taken (or `failure` says
    why not). `stop` may be called from any thread.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        address: Address | None = None,
        bounds: Bounds | None = None,
        log: Callable[..., None] = lambda *_, **__: None,
        load_share: float = LOAD_SHARE,
        read: Callable[[], tuple[Sequence[Source], Keys | None]] | None = None,
        recorder: Recorder | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """read: its files again, on SIGHUP or when an operator asks for it; UserError. recorder:
        writes down what is asked, until the server ends. tracing: every query over HTTP then needs
        Python."""
        self.served, self.log = sources[0].served, log
        self.address = address or Address()
        self.plane = DataPlane(tuple(source.served.name for source in sources), bounds, log)
        self.plane.keys = Keys.of(self.address.key)
        if recorder is not None:
            self.plane.recorder, self.plane.recent.heard = recorder, recorder.heard
        self.plane.tracing = tracing
        self.certificates: Certificates | None = None
        if (certificate := self.address.certificate) is not None:
            pair = certificate, self.address.private_key
            self.certificates = Certificates(*pair, self.address.client_ca)
        self._read = read
        self.supervisor = notify.Supervisor(os.environ, os.getpid(), log)
        again = None if read is None else self._configured
        self.repository = Repository(self.plane, sources, self._in_loop, log, load_share, again)
        self.plane.repository = self.repository
        self.site = Site(self.plane, self._pages())
        self._failures: dict[int, int] = {}  # of each accelerator, as they were logged
        self.http_port = 0
        self.grpc_port: int | None = None
        self.started, self.ready = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        self._shown: dict[str, tuple[float, bytes]] = {}  # `/live.json`, and when it was made
        self._listener: asyncio.Server | None = None
        self._unix: list[unix.Listener | unix.File] = []
        self.left_behind = False  # a thread that loads or computes did not end in time
        self._stop = self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Serves until `stop`, SIGTERM or Ctrl-C. Raises what kept it from starting."""
        files.allow_many()
        runner = _runner()
        try:
            runner.run(self._serve())
        finally:
            runner.close()
            self.started.set()
            self.ready.set()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """As SIGTERM: drains, then ends; a second time: without waiting for more to come."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _asked_to_reload(self) -> None:
        if self._read is None or self.plane.engine is None:
            self.log("reload refused", why="nothing is loaded yet")
            return
        self.supervisor.reloading("reading the configuration")
        self.repository.submit(self.repository.reload).add_done_callback(
            lambda done: self.supervisor.ready(self._serving_text())
        )

    def _configured(self) -> Configured:
        assert self._read is not None
        sources, keys = self._read()

        def apply() -> None:
            if self.certificates is not None:
                self.certificates.reload()
            self.plane.keys = Keys.of(keys)
            if self.plane.native is not None:
                self.plane.native.admit(self.plane.keys)

        return Configured(sources, apply)

    def _serving_text(self) -> str:
        return f"serving {', '.join(self.plane.models)}"

    async def _serve(self) -> None:
        loop, address = asyncio.get_running_loop(), self.address
        self._loop = loop
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        _catch_signals(loop, self._asked_to_stop, self._asked_to_reload)
        site = self.site
        listener = self._listener = await self._listen(site)
        try:
            if address.unix is not None:
                self._unix.append(unix.Listener(address.unix, "--uds", self._enter))
            grpc_server = await self._listen_grpc()
        except UserError:
            listener.close()
            self._leave_unix()
            raise
        sockets = {"uds": address.unix, "grpc_uds": address.grpc_unix}
        self.log("listening", http_port=self.http_port, grpc_port=self.grpc_port,
                 **{name: path for name, path in sockets.items() if path})  # fmt: skip
        self.started.set()
        ticking = loop.create_task(self._tick(site))
        _in_thread(self._open, "opening", self._opened)
        await self._stop.wait()
        await self._drain(site, listener, grpc_server)
        ticking.cancel()
        self.log("ended", **self.totals())

    def _opened(self, hosted: list[Hosted] | None, error: BaseException | None) -> None:
        if hosted is None:
            self._fail(error)
            return
        if self._stop.is_set():  # nobody waits for it any more
            _in_thread(partial(_close_all, hosted), "ending")
            return
        for one in hosted:
            self.repository.host(one)
        self.plane.open()
        try:
            self._go_native()
        except UserError as error:
            self._fail(error)
            return
        for one in hosted:
            self.log("ready", model=one.name, version=one.version, policy=str(one.served.policy),
                     http="native" if one.native else "python",
                     cores=quotas.said(one.engine.workers, quotas.tightest()),
                     **({"queries": "never cut"} if one.engine.model.whole else {}))  # fmt: skip
        self.supervisor.ready(self._serving_text())
        self.ready.set()

    def _in_loop(self, act: Callable[[], Any]) -> Any:
        """Does it in the event loop's thread, from another, and waits for it."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(run)
        return done.result()

    def _fail(self, error: BaseException | None) -> None:
        """Ends, and says why."""
        self.failure = error
        self._asked_to_stop()

    def _go_native(self) -> None:
        """From now on connections come to the core's door, where that knows what is served."""
        site, listener, plane = self.site, self._listener, self.plane
        if self.address.certificate is not None or listener is None:
            return
        native = plane.native = open_natively(plane, self._take, self._fail)
        if native is not None:
            native.sample_every(plane.recent.every_s)
        if native is not None:
            plane.waiting.native = native
            plane.regions.share_with(native)
            native.hold(plane.waiting.held)
            native.allow(plane.bounds.connections - len(site.connections))
            native.listen(listener.sockets[0])
            listener.close()

    async def _enter(self, connection: socket.socket) -> None:
        """One of the Unix socket's."""
        native = self.plane.native
        if native is None or not native.taking:
            await self._take(connection)
            return
        native.adopt(connection.fileno(), unix.peer_of(connection))
        connection.close()

    def _leave_unix(self) -> None:
        for one in self._unix:
            one.close()

    async def _take(self, connection: socket.socket, handed: Handed | None = None) -> None:
        """One that the door hands over."""
        make = partial(Connection, self.site, handed)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(make, connection)
        except OSError:
            connection.close()

    def _open(self) -> list[Hosted]:
        """Whatever takes long, the pages' first reading included: the loop would wait for it."""
        for read in (page.live_page, page.plotly_js, _machine):
            read()
        return self.repository.open_all()

    async def _listen(self, site: Site) -> asyncio.Server:
        address, loop = self.address, asyncio.get_running_loop()
        tls = self.certificates.context() if self.certificates else None
        try:
            server = await loop.create_server(
                lambda: Connection(site),
                sock=_bound(address.host, address.http_port),
                ssl=tls,
                backlog=files.backlog(1024),
                ssl_handshake_timeout=site.plane.bounds.head_s if tls else None,
            )
        except OSError as error:
            raise _cannot_listen(address.host, address.http_port, "http", error) from error
        self.http_port = server.sockets[0].getsockname()[1]
        return server

    async def _listen_grpc(self) -> Any:
        address = self.address
        if address.grpc_port is None:
            return None
        from deeprecsys.serving import grpc_adapter

        try:  # gRPC does not say what is wrong with an address
            _bound(address.host, address.grpc_port).close()
        except OSError as error:
            raise _cannot_listen(address.host, address.grpc_port, "grpc", error) from error
        credentials = self.certificates.credentials() if self.certificates else None
        if address.grpc_unix is not None:
            unix.make_room(address.grpc_unix, "--grpc-uds")
        try:
            server, self.grpc_port = await grpc_adapter.start(
                self.plane,
                self.site.looks,
                f"{_bracketed(address.host)}:{address.grpc_port}",
                credentials,
                address.grpc_unix,
            )
        except OSError as error:
            raise _cannot_listen(address.host, address.grpc_port, "grpc", error) from error
        if address.grpc_unix is not None:
            self._unix.append(unix.File(address.grpc_unix))
        return server

    async def _tick(self, site: Site) -> None:
        """Once a second: time-outs, hung workers, the page's history."""
        while True:
            await asyncio.sleep(1.0)
            now_s, engine = clock(), self.plane.engine
            if self.plane.state != "ended" and self.plane.live:
                self.supervisor.alive(now_s)
            site.sweep(now_s)
            self.plane.rates.sweep(now_s)
            self._say_turned_away(site)
            self.plane.observed.loop_lag_s = site.looks.lag_s()
            if self.plane.waiting.owes():
                _in_thread(give_back, "giving memory back")
            if engine is not None and self.plane.state != "ended":
                if engine.replace_hung(self.served.longest_s):
                    self.log("worker replaced", why=engine.load().lost_workers[-1])
                load = engine.load()
                self._say_failures(load)
                queued = 0
                self.plane.seen()
                for hosted in self.plane.hosted():
                    own = hosted.engine.load()
                    queued += own.queued_items
                    hosted.observed.tick(now_s, own.queued_items, own.busy_s)
                self.plane.observed.tick(now_s, queued, load.busy_s)

    def _say_turned_away(self, site: Site) -> None:
        if count := site.turned_away:
            site.turned_away = 0
            open_ = len(site.connections)
            self.log("connections turned away", count=count, open=open_, files=files.limit())

    def _say_failures(self, load: Load) -> None:
        """Of accelerators, since the last look."""
        for number, device in enumerate(load.devices):
            if device.failures > self._failures.get(number, 0):
                self._failures[number] = device.failures
                about = {"number": number, "present": device.present, "why": device.why}
                self.log("accelerator failed", name=device.name, **about)

    async def _drain(self, site: Site, listener: asyncio.Server, grpc_server: Any) -> None:
        """Says that it is not ready and goes on for a while, for load balancers see it late; then
        takes no more, answers what it took, and ends what is left by then."""
        plane, loading = self.plane, self.plane.state == "starting"
        plane.state = "draining"
        site.draining = True
        native = plane.native
        if native is not None:
            native.drain()
        self.supervisor.stopping("draining")
        self.log("draining", pending=plane.pending)
        if not loading:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), plane.bounds.drain_s)
        plane.state = "finishing"
        listener.close()
        self._leave_unix()
        if native is not None:
            native.stop_listening()
        until = clock() + FINISH_S
        stopping = None
        if grpc_server is not None:
            stopping = asyncio.get_running_loop().create_task(grpc_server.stop(FINISH_S))
        site.close_idle()
        while (
            site.connections or plane.pending or (native is not None and native.handing)
        ) and clock() < until:
            await asyncio.sleep(0.01)
            site.close_idle()
            site.abort_deaf()
        plane.state = "ended"
        site.abort()
        if stopping is not None:
            await stopping
        plane.threads.close()
        self.repository.close()
        if plane.engine is not None:
            self.left_behind = not await _ends(
                partial(_close_all, list(plane.hosted()), within_s=max(0.0, until - clock())),
                until + 0.5 - clock(),
            )
        else:
            self.left_behind = loading and self.failure is None
        self.left_behind = self.left_behind or self.repository.busy
        plane.regions.unregister()
        if plane.recorder is not None:
            plane.seen()
            plane.recorder.close()
        if native is not None:
            native.close()
        if plane.tracing is not None:
            sent = await _ends(plane.tracing.close, _SPANS_S)
            self.left_behind = self.left_behind or not sent

    def totals(self) -> dict[str, Any]:
        seen = self.plane.seen()
        reasons = {reason.name.lower(): n for reason, n in seen.failures.items() if n}
        return {"answered": seen.answered, "items": seen.items, **reasons}

    def live(self, model: str = "") -> dict[str, Any]:
        """What the live page shows of a model; the first, unless said. Refusal if there is none of
        that name."""
        plane = self.plane
        found = plane.model(model or next(iter(plane.models)))
        hosted = found.stable if found.ready else None
        engine = hosted.engine if hosted else None
        served = hosted.served if hosted else self.served
        load = engine.load() if engine else None
        seen = plane.seen()
        if hosted is not None and len(plane.models) > 1:
            seen = hosted.observed
        said = seen.live(clock())
        said["now"] |= {
            "queued_items": load.queued_items if load else 0,
            "queued_queries": load.open_queries if load else 0,
            "in_flight": plane.pending,
        }
        about = _machine()
        return {
            "model": found.name,
            "models": list(plane.models),
            "version": hosted.version if hosted else VERSION,
            "versions": found.index(),
            "events": self.repository.events(found.name),
            "state": plane.state,
            "started": time.strftime(
                "%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - self._uptime_s())
            ),
            "uptime_s": self._uptime_s(),
            "sla": {"percentile": served.sla.percentile, "latency_s": served.sla.latency_s},
            "policy": served.policy.to_dict(),
            "policy_text": str(served.policy),
            "execution": str(served.policy.execution),
            "runtime": engine.runtime.name if engine else None,
            "workers": engine.workers if engine else None,
            "machine": {"cpu": about.get("cpu"), "cores": about.get("cores")},
            **said,
        }

    def _live_json(self, query: str = "") -> bytes:
        """The same for all who ask within a second: what it costs does not grow with viewers."""
        model = parse_qs(query).get("model", [""])[0]
        at_s, text = self._shown.get(model, (-math.inf, b""))
        now_s = clock()
        if now_s - at_s >= _SHOWN_S:
            text = _encode(self.live(model))
            self._shown[model] = now_s, text
        return text

    def _uptime_s(self) -> float:
        return clock() - self.plane.observed.started_s

    def _pages(self) -> dict[str, Page]:
        return {
            "/": lambda _: (b"text/html; charset=utf-8", page.live_page()),
            "/plotly.min.js": lambda _: (b"text/javascript; charset=utf-8", page.plotly_js()),
            "/live.json": lambda query: (b"application/json", self._live_json(query)),
            "/metrics": lambda _: (metrics.CONTENT_TYPE.encode(), metrics.exposition(self.plane)),
        }


def _close_all(hosted: list[Hosted], within_s: float = 0.0) -> bool:
    """Their engines; False: a thread was left behind."""
    until_s = clock() + within_s
    return all([one.engine.close(within_s=max(0.0, until_s - clock())) for one in hosted])


_machine = cache(topology.machine)


def json_log(name: str = log_line.OURS) -> Callable[..., None]:
    """One JSON object a line, to the logger of that name, at the level of what is said."""
    logger = logging.getLogger(name)

    def log(event: str, **about: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        level = _level(event, about.get("status", 0))
        logger.log(level, log_line.line({"time": stamp, "event": event, **about}))

    return log


def _level(event: str, status: int) -> int:
    """error: a fault of the server or the model; warning: what an operator may have to see to."""
    if event == "fault" or status == 500:
        return logging.ERROR
    if event in ("worker replaced", "accelerator failed") or status == 503:
        return logging.WARNING
    return logging.INFO


def _runner() -> asyncio.Runner:
    """On uvloop where it is installed: half the cost of a small request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _catch_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], None], reload: Callable[[], None]
) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)


def _in_thread(
    act: Callable[[], Any], name: str, then: Callable[[Any, Any], None] = lambda *_: None
) -> None:
    """A daemon: it keeps no process from ending. `then` gets what came of it, or the error, in
    the loop that asked, unless that has ended."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            result, error = act(), None
        except BaseException as raised:
            result, error = None, raised
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(then, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()


async def _ends(act: Callable[[], bool], within_s: float) -> bool:
    """Does it, in a thread, end in time, and say that it left nothing behind?"""
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    _in_thread(act, "ending", lambda clean, _: ended.set_result(bool(clean)))
    try:
        return await asyncio.wait_for(asyncio.shield(ended), max(within_s, 0.5))
    except TimeoutError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address; `::` takes IPv4 as well, as gRPC's does. Raises OSError."""
    family, *_, where = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(where[:2], family=family, backlog=1024, dualstack_ipv6=both)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cannot_listen(host: str, port: int, protocol: str, error: OSError) -> UserError:
    where = f"cannot listen at {_bracketed(host)}:{port} ({protocol})"
    if error.errno == errno.EADDRINUSE:
        return UserError(f"{where}: it is taken; choose another --{protocol}-port")
    return UserError(f"{where}: {error.strerror or error}; choose another --host")


__all__ = ["Address", "Server", "json_log"]
