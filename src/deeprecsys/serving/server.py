"""A server's life: probes answer while the model loads, then it is warm and ready, then it drains.

Composes engine, data plane and adapters on one event loop. Knows no protocol. The command line
and the tests start it; `Server.run` returns when it was asked to end and has answered all it took.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import msgspec
import numpy as np

from deeprecsys.core import Policy, UserError
from deeprecsys.engine import Engine, Load, topology
from deeprecsys.rules.dispatch import QueueFull
from deeprecsys.serving import files, log_line, metrics, page, unix
from deeprecsys.serving.bounds import Bounds, give_back
from deeprecsys.serving.dataplane import VERSION, DataPlane, Served, clock
from deeprecsys.serving.http_adapter import Connection
from deeprecsys.serving.http_routes import Page
from deeprecsys.serving.keys import Keys
from deeprecsys.serving.native import Handed, open_natively
from deeprecsys.serving.site import Site
from deeprecsys.serving.tls import Certificates

_encode = msgspec.json.Encoder().encode
# After the time to drain, what was taken is answered within so long, and what is left is ended.
FINISH_S = 3.0
_SHOWN_S = 0.5
# Warming up: recorded queries, the longest it may take, and by how much less a round is no gain.
_REPLAYED, _WARM_S, _STEADY = 200, 5.0, 0.9


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
    """`open_engine` loads the model and enters an engine, in a thread of its own.

    After `started` is set the ports are known; after `ready`, queries are taken (or `failure` says
    why not). `stop` may be called from any thread.
    """

    def __init__(
        self,
        served: Served,
        open_engine: Callable[[], Engine],
        address: Address | None = None,
        bounds: Bounds | None = None,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.served, self.open_engine, self.log = served, open_engine, log
        self.address = address or Address()
        self.plane = DataPlane(served, bounds, log)
        self.plane.keys = Keys.of(self.address.key)
        self.certificates: Certificates | None = None
        if (certificate := self.address.certificate) is not None:
            pair = certificate, self.address.private_key
            self.certificates = Certificates(*pair, self.address.client_ca)
        self.site = Site(self.plane, self._pages())
        self._failures: dict[int, int] = {}  # of each accelerator, as they were logged
        self.http_port = 0
        self.grpc_port: int | None = None
        self.started, self.ready = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        self._shown = -math.inf, b""  # the last `/live.json`, and when it was made
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

    async def _serve(self) -> None:
        loop, address = asyncio.get_running_loop(), self.address
        self._loop = loop
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        _catch_signals(loop, self._asked_to_stop)
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

    def _opened(self, engine: Engine | None, error: BaseException | None) -> None:
        if engine is None:
            self._fail(error)
            return
        if self._stop.is_set():  # nobody waits for it any more
            _in_thread(engine.close, "ending")
            return
        self.plane.open(engine)
        try:
            self._go_native()
        except UserError as error:
            self._fail(error)
            return
        self.log("ready", model=self.served.name, policy=str(self.served.policy),
                 http="native" if self.plane.native else "python",
                 **({"queries": "never cut"} if engine.model.whole else {}))  # fmt: skip
        self.ready.set()

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

    def _open(self) -> Engine:
        """Whatever takes long, the pages' first reading included: the loop would wait for it."""
        for read in (page.live_page, page.plotly_js, _machine):
            read()
        engine = self.open_engine()
        warm_up(engine, self.served.policy)
        return engine

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
            site.sweep(now_s)
            self.plane.rates.sweep(now_s)
            self._say_turned_away(site)
            self.plane.observed.loop_lag_s = site.looks.lag_s()
            if self.plane.waiting.owes():
                _in_thread(give_back, "giving memory back")
            if engine is not None:
                if engine.replace_hung(self.served.longest_s):
                    self.log("worker replaced", why=engine.load().lost_workers[-1])
                load = engine.load()
                self._say_failures(load)
                self.plane.seen().tick(now_s, load.queued_items, load.busy_s)

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
            site.connections or plane.pending or (native is not None and native.connections)
        ) and clock() < until:
            await asyncio.sleep(0.01)
            site.close_idle()
            site.abort_deaf()
        plane.state = "ended"
        site.abort()
        if stopping is not None:
            await stopping
        plane.threads.close()
        if plane.engine is not None:
            self.left_behind = not await _ends(
                partial(plane.engine.close, within_s=max(0.0, until - clock())),
                until + 0.5 - clock(),
            )
        else:
            self.left_behind = loading and self.failure is None
        plane.regions.unregister()
        if native is not None:
            native.close()

    def totals(self) -> dict[str, Any]:
        seen = self.plane.seen()
        reasons = {reason.name.lower(): n for reason, n in seen.failures.items() if n}
        return {"answered": seen.answered, "items": seen.items, **reasons}

    def live(self) -> dict[str, Any]:
        """What the live page shows."""
        plane, served = self.plane, self.served
        engine = plane.engine
        load = engine.load() if engine else None
        said = plane.seen().live(clock())
        said["now"] |= {
            "queued_items": load.queued_items if load else 0,
            "queued_queries": load.open_queries if load else 0,
            "in_flight": plane.pending,
        }
        about = _machine()
        return {
            "model": served.name,
            "version": VERSION,
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

    def _live_json(self) -> bytes:
        """The same for all who ask within a second: what it costs does not grow with viewers."""
        at_s, text = self._shown
        now_s = clock()
        if now_s - at_s >= _SHOWN_S:
            text = _encode(self.live())
            self._shown = now_s, text
        return text

    def _uptime_s(self) -> float:
        return clock() - self.plane.observed.started_s

    def _pages(self) -> dict[str, Page]:
        return {
            "/": lambda: (b"text/html; charset=utf-8", page.live_page()),
            "/plotly.min.js": lambda: (b"text/javascript; charset=utf-8", page.plotly_js()),
            "/live.json": lambda: (b"application/json", self._live_json()),
            "/metrics": lambda: (metrics.CONTENT_TYPE.encode(), metrics.exposition(self.plane)),
        }


def warm_up(engine: Engine, policy: Policy, largest: int = 1024) -> None:
    """Queries of every size that cuts differently, and recorded ones where the model has some: so
    that none of a client's is the first. Again, until they are no longer faster than before: what a
    library compiles for a size, it compiles when it has seen it more than once."""
    model = engine.model
    if model.whole and model.most_items is not None:
        largest = min(largest, model.most_items)
    sizes = {1 << k for k in range(largest.bit_length())} | {policy.batch_size, largest}
    rng = np.random.default_rng(0)
    queries = [*(model.example(size, rng) for size in sorted(sizes) if size <= largest),
               *getattr(model, "recorded", ())[:_REPLAYED]]  # fmt: skip
    before_s, until_s = math.inf, clock() + _WARM_S
    while True:
        began_s = clock()
        for inputs in queries:
            _ask_all(engine, inputs, policy)
        took_s = clock() - began_s
        if took_s > _STEADY * before_s or clock() > until_s:
            return
        before_s = took_s


def _ask_all(engine: Engine, inputs: Any, policy: Policy) -> None:
    """The same query of every worker."""
    try:
        futures = [engine.submit(inputs, policy)]
    except UserError:  # fewer candidates than the model takes
        return
    with suppress(QueueFull):  # a bound so small that they do not wait beside each other
        futures += [engine.submit(inputs, policy) for _ in range(engine.workers - 1)]
    for future in futures:
        future.result()


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


def _catch_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop)


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


__all__ = ["Address", "Server", "json_log", "warm_up"]
