"""Who may receive a gRPC message, and when."""

import asyncio

import pytest

from deeprecsys.serving import gate as module
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.gate import Gate

MB = 1 << 20


class Virtual(asyncio.SelectorEventLoop):
    """Time passes when nothing else is left to do."""

    now_s = 0.0

    def time(self):
        return self.now_s

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now_s = max(self.now_s, self._scheduled[0].when())
        super()._run_once()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(module, "clock", lambda: asyncio.get_running_loop().time())


def received(sizes, places=1):
    """When and whose, of (peer, client, bytes) that all ask at once."""
    seen = []

    async def ask(gate, peer, client, size):
        async with gate.place(peer, client):
            seen.append((module.clock(), client))
            await asyncio.sleep(0)  # others may begin
            gate.came(client, size)

    async def all_of_them():
        gate = Gate(Bounds(), places)
        await asyncio.gather(*(ask(gate, *one) for one in sizes))
        assert not gate._reading
        assert not gate._held
        assert not gate._waiting

    with asyncio.Runner(loop_factory=Virtual) as runner:
        runner.run(all_of_them())
    return seen


@pytest.mark.parametrize("places", [1, 4])
def test_a_client_s_long_messages_come_at_a_bounded_rate_whatever_its_connections(places):
    seen = received([(f"peer {k % 3}", "a", 64 * MB) for k in range(9)], places)
    each_s = 64 * MB / module._BYTES_A_S
    for number, (at, _) in enumerate(seen):
        assert number * each_s + 1e-9 >= at >= (number - places + 1) * each_s - 1e-9


def test_another_client_does_not_wait_for_that():
    long = [(f"peer {k}", "a", 64 * MB) for k in range(5)]
    short = [(f"other {k}", "b", 100) for k in range(5)]
    seen = received([pair for both in zip(long, short, strict=True) for pair in both])
    assert [at for at, client in seen if client == "b"] == [0.0] * 5


def test_short_messages_have_no_rate():
    seen = received([("peer", "a", 8 * MB)] * 20)
    assert [at for at, _ in seen] == [0.0] * 20
