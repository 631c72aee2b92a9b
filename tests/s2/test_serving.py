"""The gateway's store on S2: what its two halves owe each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from celery_streams.contracts import JSON, Head
from celery_streams.errors import ChunkTooLarge, RunFinished, StreamNotFound
from celery_streams.protocol import Creation, Lifetime, Post
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import AsyncRedisLink, Call
from celery_streams.redis.layout import Layout
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import parse_s2_address
from celery_streams.stores.s2.asynchronous import AsyncS2Store
from celery_streams.stores.s2.serving import S2ProtocolStore
from celery_streams.stores.s2.state import PAYLOAD_BYTES
from celery_streams.stores.s2.sweeping import Sweeper
from tests.conftest import SettingsFor
from tests.s2.conftest import Place
from tests.servers import ValkeyProcess

PATH = Slot.path("own/stream")


class Both:
    """The store, and its halves."""

    def __init__(self, place: Place, valkey: ValkeyProcess, settings_for: SettingsFor) -> None:
        settings = settings_for(place.url)
        self.layout = Layout(settings.prefix)
        self.link = AsyncRedisLink(parse_address(valkey.url), settings)
        self.chunks = AsyncS2Store(parse_s2_address(place.url), settings)
        self.store = S2ProtocolStore(self.chunks, self.link, self.layout, settings)

    async def create(self, slot: Slot = PATH, **options: Any) -> bool:
        created, _ = await self.store.create(slot, Creation(JSON, (b"1",), **options))
        return created

    async def read(self, slot: Slot = PATH) -> list[bytes]:
        page = await self.store.read(slot, 0)
        return [entry.payload for entry in page.entries]


@pytest.fixture
def run(place: Place, valkey: ValkeyProcess, settings_for: SettingsFor) -> Any:
    """``run(work)``: calls it with both, on an event loop of its own."""
    valkey.flush()

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[Both]:
        both = Both(place, valkey, settings_for)
        try:
            yield both
        finally:
            await both.store.aclose()

    def call(work: Any) -> Any:
        async def main() -> Any:
            async with connected() as both:
                return await work(both)

        return asyncio.run(main())

    return call


def test_what_expired_in_redis_is_deleted_on_s2(run: Any, place: Place) -> None:
    """And nothing else: neither what lives, nor what is only being made."""

    async def work(both: Both) -> None:
        await both.create()
        await both.create(Slot.path("short"), lifetime=Lifetime(ttl=1))
        assert len(place.server.target.streams()) == 2
        while not isinstance((await both.store.heads([Slot.path("short")]))[0], StreamNotFound):
            await asyncio.sleep(0.05)
        careful = Sweeper(both.chunks, both.link, both.layout)
        assert await careful.sweep() == 0
        sweeper = Sweeper(both.chunks, both.link, both.layout, grace=timedelta(0))
        assert await sweeper.sweep() == 1
        assert await sweeper.sweep() == 0
        assert await both.read() == [b"1"]

    run(work)
    assert len(place.server.target.streams()) == 1


def test_a_stream_that_is_deleted_and_created_again_is_another(run: Any) -> None:
    """Though S2 may still be deleting the first."""

    async def work(both: Both) -> None:
        for _ in range(3):
            assert await both.create()
            await both.store.post(PATH, Post(JSON, (b"2",)))
            assert await both.read() == [b"1", b"2"]
            await both.store.remove(PATH)
            with pytest.raises(StreamNotFound):
                await both.store.post(PATH, Post(JSON, (b"3",)))

    run(work)


def test_creators_at_once_make_one_stream(run: Any, place: Place) -> None:
    """The others find it; what they had begun to make is gone."""

    async def work(both: Both) -> None:
        created = await asyncio.gather(*(both.create() for _ in range(8)))
        assert sorted(created) == [False] * 7 + [True]
        assert await both.read() == [b"1"]

    run(work)
    assert len(place.server.target.streams()) == 1


@pytest.mark.parametrize(
    ("closed", "run_state"), [("SUCCESS", "SUCCESS"), ("LOST", "LOST"), ("CLOSED", "PENDING")]
)
def test_a_run_that_ends_between_the_two_looks(run: Any, closed: str, run_state: str) -> None:
    """Redis was asked before, and S2 after: nobody hears of an end without how the run did."""

    async def work(both: Both) -> None:
        slot = Slot.run("brief")
        await both.create(slot)
        await both.chunks.view(slot).close(None, closed, both.chunks.token)  # and Redis not told
        page = await both.store.read(slot, 0)
        for head in (page.head, *await both.store.heads([slot])):
            assert isinstance(head, Head)
            assert (head.closed, head.run_state) == (closed, run_state)

    run(work)


def test_a_stream_of_a_run_that_has_ended_cannot_be_created(run: Any) -> None:
    """As with the Redis store."""

    async def work(both: Both) -> None:
        slot = Slot.run("over", "new")
        ended: Call[int] = Call("HSET", (both.layout.owner(slot),), ("state", "SUCCESS"))
        await both.link.call(ended)
        with pytest.raises(RunFinished, match="SUCCESS"):
            await both.create(slot)

    run(work)


def test_what_redis_has_lost_is_still_read(run: Any, valkey: ValkeyProcess) -> None:
    """A run's chunks do not depend on it."""

    async def work(both: Both) -> None:
        slot = Slot.run("kept")
        await both.create(slot)
        valkey.flush()
        assert await both.read(slot) == [b"1"]
        (head,) = await both.store.heads([slot])
        assert not isinstance(head, Exception)
        assert head.end == 1

    run(work)


def test_what_does_not_fit_a_record_is_refused(run: Any) -> None:
    """Before anything is made of it."""

    async def work(both: Both) -> None:
        large = (b'"%b"' % (b"x" * PAYLOAD_BYTES),)
        with pytest.raises(ChunkTooLarge):
            await both.store.create(PATH, Creation(JSON, large))
        assert isinstance((await both.store.heads([PATH]))[0], StreamNotFound)
        await both.create()
        with pytest.raises(ChunkTooLarge):
            await both.store.post(PATH, Post(JSON, large))
        assert await both.read() == [b"1"]

    run(work)
