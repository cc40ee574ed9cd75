"""What all HTTP connections share: their number, what they wait for, what clients do not read.

Where there is no room, whoever has kept the server waiting longest makes it: a client that opens
connections or bodies and does not go on can keep nobody else out. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.serving import files
from deeprecsys.serving.bounds import Hold, over
from deeprecsys.serving.dataplane import DataPlane, clock
from deeprecsys.serving.http_routes import Page
from deeprecsys.serving.looks import Looks

if TYPE_CHECKING:
    from deeprecsys.serving.http_adapter import Connection

_SAFE_S = 1.0  # a body that began later is not asked to make room


@dataclass(slots=True, eq=False)
class Site:
    """pages: path -> what a GET of it answers. waiting: connections whose next head has not come;
    receiving: whose body has not, since when. Both by age. unsent: bytes of answers that clients do
    not read."""

    plane: DataPlane
    pages: Mapping[str, Page] = field(default_factory=dict)
    connections: set[Connection] = field(default_factory=set)
    waiting: dict[Connection, None] = field(default_factory=dict)
    receiving: dict[Connection, float] = field(default_factory=dict)
    unsent: int = 0
    turned_away: int = 0  # connections, since it was last logged
    looks: Looks = field(default_factory=Looks)
    draining: bool = False  # every answer closes its connection

    def enter(self, connection: Connection) -> None:
        """Refusal if there is no place for one more."""
        self.connections.add(connection)
        native, most = self.plane.native, self.plane.bounds.connections
        self._allow()
        if len(self.connections) + (native.connections if native else 0) <= most:
            self.waiting[connection] = None
        elif self.waiting:
            next(iter(self.waiting)).give_way()
            self.waiting[connection] = None
        elif native is not None and native.evict():
            self.waiting[connection] = None
        elif not self._evict():
            self.turned_away += 1
            raise over(Reason.UNAVAILABLE, "too many connections", "max-connections")

    def enter_with(self, connection: Connection, number: int) -> None:
        """The same for one whose file descriptor has this number; Refusal if few are left."""
        if files.left(number) >= files.spare():
            self.enter(connection)
            return
        self.turned_away += 1
        if self._idle_gives_way():
            self.enter(connection)
            return
        self.connections.add(connection)
        raise over(Reason.UNAVAILABLE, "too many connections: no files are left", "max-connections")

    def _idle_gives_way(self) -> bool:
        """Ends the connection that has said nothing longest; False if none has for long."""
        oldest = next(iter(self.waiting), None)
        if oldest is None or clock() - oldest.began_s <= _SAFE_S:
            return self.plane.native is not None and self.plane.native.evict(_SAFE_S)
        oldest.give_way()
        return True

    def leave(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._allow()
        self.waiting.pop(connection, None)
        self.receiving.pop(connection, None)

    def _allow(self) -> None:
        """Says how many connections may need no Python."""
        if self.plane.native is not None:
            self.plane.native.allow(self.plane.bounds.connections - len(self.connections))

    def hold(self, hold: Hold, count: int) -> None:
        """As `hold.add`; the oldest bodies that are still coming make room where they must."""
        while True:
            try:
                hold.add(count)
                return
            except Refusal as refusal:
                if refusal.reason is not Reason.OVERLOADED or not self._evict():
                    raise

    def room(self, count: int) -> None:
        """Refusal if so much of a page would be too much beside what is not read already."""
        if self.unsent + count > self.plane.bounds.unsent_bytes:
            message = "overloaded: too much is not read already"
            raise over(Reason.OVERLOADED, message, "max-unsent-mb")

    def _evict(self) -> bool:
        """Ends the body that has been coming longest; False if none has for long."""
        for connection, began_s in self.receiving.items():
            if clock() - began_s > _SAFE_S:
                connection.give_way()
                return True
            break
        return False

    def sweep(self, now_s: float) -> None:
        """Once a second: ends connections that wait too long for what the client owes."""
        for connection in list(self.connections):
            connection.check_time(now_s)

    def close_idle(self) -> None:
        for connection in list(self.waiting):
            connection.close_if_idle()

    def abort_deaf(self) -> None:
        """Ends those that do not read what they were answered."""
        for connection in list(self.connections):
            connection.abort_if_deaf()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()


__all__ = ["Site"]
