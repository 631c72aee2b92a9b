"""A reply is lost after the command was applied, a command is cut anywhere: applied once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import pytest

from celery_streams.errors import StoreUnavailable
from celery_streams.slots import Slot
from tests.servers import Proxy, ServerProcess
from tests.stores.faults.bench import Bench
from tests.stores.faults.conftest import Open

Times = Callable[[int, int], int]


def test_a_reply_lost_after_the_append_was_applied_duplicates_nothing(
    server: ServerProcess, open_bench: Open, single: Bench, times: Times
) -> None:
    """The resend is answered with the offset of the first time."""
    with Proxy(server.port) as proxy:
        bench = open_bench(server.url_for(port=proxy.port))
        writer = bench.writer(bench.slot())
        writer.append(0)
        for number in range(1, times(30, 2000)):
            batch = writer.batch(number)
            applied = proxy.cut_reply_to(b"EVALSHA")
            with pytest.raises(StoreUnavailable):
                writer.send(batch)
            assert applied.wait(5)
            again = writer.send(batch)
            assert (again.offset, again.duplicate) == (number, True)
        assert single.values(writer.slot) == [b"%d" % n for n in range(writer.seq)]


def test_commands_and_replies_cut_at_random_bytes_lose_and_duplicate_nothing(
    server: ServerProcess, open_bench: Open, single: Bench, times: Times
) -> None:
    """Wherever the connection breaks: before, within or after the command, or its reply."""
    chance = random.Random(17)
    resent = 0
    with Proxy(server.port) as proxy:
        bench = open_bench(server.url_for(port=proxy.port))
        writer = bench.writer(bench.slot())
        directions: tuple[Literal["up", "down"], ...] = ("up", "down")
        expected: list[bytes] = []
        for number in range(times(60, 3000)):
            direction = chance.choice(directions)
            proxy.cut_after(chance.randrange(600 if direction == "up" else 40), direction)
            resent += writer.insist(number, -number)
            expected += [b"%d" % number, b"%d" % -number]
    assert resent > times(15, 700)
    assert single.values(writer.slot) == expected


def test_a_server_killed_and_restarted_loses_nothing_that_was_acknowledged(
    open_bench: Open, times: Times
) -> None:
    """With the append-only file; the writer sends again what was not."""
    from tests.servers import ValkeyProcess

    with ValkeyProcess(aof=True, options={"appendfsync": "always"}) as server:
        bench = open_bench(server.url)
        writer = bench.writer(Slot.run("restarted"))
        for number in range(times(3, 30)):
            writer.append(number)
            server.kill()
            with pytest.raises(StoreUnavailable):
                writer.append("never")
            server.start()
            writer.insist(number)
        assert bench.values(writer.slot) == [
            b"%d" % n for number in range(times(3, 30)) for n in (number, number)
        ]


def test_a_server_that_stops_answering_is_unavailable_within_the_timeout(
    server: ServerProcess, open_bench: Open
) -> None:
    """And what it had received is applied once, when it answers again."""
    with Proxy(server.port) as proxy:
        bench = open_bench(server.url_for(port=proxy.port), socket_timeout=0.2)
        writer = bench.writer(bench.slot())
        batch = writer.batch(1)
        proxy.stall("down")
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            writer.send(batch)
        proxy.resume("down")
        writer.insist(1)
        assert bench.values(writer.slot) == [b"1"]
