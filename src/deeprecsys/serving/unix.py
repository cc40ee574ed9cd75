"""Unix sockets: where a server listens for clients on its machine, by a file's rights.

A socket's file that a dead server left is replaced; one at which somebody listens is not.
Connections are accepted in the event loop, and handed on: to Python, or to the native door, which
takes any connected socket. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from deeprecsys.core import UserError

MODE = 0o660  # of the file: the server's user and group may connect
_BACKLOG, _AT_ONCE, _REST_S = 1024, 64, 0.1
_LONGEST = 99  # bytes of a path; the system takes 107, and there is a process's number behind it
_PEER = struct.Struct("@iII")  # struct ucred: process, user, group


class Listener:
    """Begins to accept at once. take: what becomes of a connection."""

    def __init__(
        self, path: str, option: str, take: Callable[[socket.socket], Coroutine[Any, Any, None]]
    ) -> None:
        """option: that names the path, for messages. UserError where it cannot listen there."""
        self._take, self._loop = take, asyncio.get_running_loop()
        self._socket = bound(path, option)
        self._file = File(path)
        self._tasks = set[asyncio.Task[None]]()
        self._hear()

    def close(self) -> None:
        """Accepts no more, and removes the file. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._file.close()

    def _hear(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no file is left: it would be told again at once
                self._loop.remove_reader(self._socket)
                self._loop.call_later(_REST_S, self._hear)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._take(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class File:
    """A socket's, which is this server's until it is somebody else's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._which = self._found()

    def close(self) -> None:
        """Removes it."""
        if self._which is not None and self._found() == self._which:
            with suppress(OSError):
                os.unlink(self.path)

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def bound(path: str, option: str) -> socket.socket:
    """A socket that listens there. It has its rights, and listens, before it has its name: nobody
    finds a file at which nobody listens, and takes it for a dead server's."""
    make_room(path, option)
    listener, new = socket.socket(socket.AF_UNIX), f"{path}.{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)
        listener.bind(new)
        os.chmod(new, MODE)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        os.rename(new, path)
    except OSError as error:
        listener.close()
        with suppress(OSError):
            os.unlink(new)
        raise cannot(path, option, error.strerror or str(error)) from error
    return listener


def make_room(path: str, option: str) -> None:
    """UserError where something else than a dead server's socket is there."""
    if len(os.fsencode(path)) > _LONGEST:
        raise cannot(path, option, f"the path is too long, of at most {_LONGEST} bytes")
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise cannot(path, option, "there is a file that is no socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot(path, option, error.strerror or str(error)) from error
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # which whoever takes its name replaces
        except (BlockingIOError, TimeoutError):
            pass  # so many wait to be accepted
        except OSError as error:
            raise cannot(path, option, error.strerror or str(error)) from error
    raise cannot(path, option, "a server listens there")


def cannot(path: str, option: str, why: str) -> UserError:
    return UserError(f"cannot listen at {path}: {why}; choose another {option}")


@contextmanager
def private() -> Iterator[None]:
    """Files that are made meanwhile have `MODE` at most; for those whose maker cannot be told."""
    before = os.umask(0o777 & ~MODE)
    try:
        yield
    finally:
        os.umask(before)


def peer_of(connection: Any) -> str:
    """Who asks, as far as shares between clients go: its user, whatever number of processes."""
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    except (OSError, AttributeError):
        return "local"
    return f"user {_PEER.unpack(found)[1]}"


__all__ = ["MODE", "File", "Listener", "bound", "cannot", "make_room", "peer_of", "private"]
