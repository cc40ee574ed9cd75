"""Where a name leads, and sockets that speak TLS behind the three calls the HTTP half uses.

Non-blocking throughout: what cannot be done yet raises BlockingIOError, whatever the reason.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

from deeprecsys.client.access import tls_reason

_RECORD_BYTES = 16 << 10  # RFC 8446, 5.1


class Place(NamedTuple):
    """One address of a name."""

    family: int
    to: Any


def places(host: str, port: int, first: str | None = None) -> list[Place]:
    """All addresses of the name, in the system's order, `first` before the others."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    every = list(dict.fromkeys(Place(family, to) for family, _, _, _, to in found))
    return sorted(every, key=lambda place: place.to[0] != first)


class Secure:
    """A socket under TLS. The handshake is part of the first send, once there is a connection."""

    __slots__ = ("_context", "_host", "_sock")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock, self._context, self._host = sock, context, host

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def sendmsg(self, parts: Sequence[Any]) -> int:
        """Some of the parts, a record of TLS at most: small ones share one."""
        try:
            return int(self._secured().send(_record(parts)))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as wait:
            raise BlockingIOError from wait

    def recv_into(self, buffer: bytearray) -> int:
        try:
            return int(self._secured().recv_into(buffer))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as wait:
            raise BlockingIOError from wait

    def _secured(self) -> ssl.SSLSocket:
        if not isinstance(self._sock, ssl.SSLSocket):
            self._check_connected()
            self._sock = self._context.wrap_socket(
                self._sock, server_hostname=self._host, do_handshake_on_connect=False
            )
        return self._sock

    def _check_connected(self) -> None:
        if failed := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, os.strerror(failed))
        try:
            self._sock.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise BlockingIOError from error
            raise


def _record(parts: Sequence[Any]) -> Any:
    """The same bytes for the same parts: what TLS could not send, it wants to see again."""
    length = 0
    for n, part in enumerate(parts):
        if length + len(part) > _RECORD_BYTES:
            return b"".join([*parts[:n], memoryview(part)[: _RECORD_BYTES - length]])
        length += len(part)
    return b"".join(parts)


def reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return tls_reason(error)
    return (error.strerror or str(error)).lower()
