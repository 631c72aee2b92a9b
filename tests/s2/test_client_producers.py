"""Clients' producers on S2: a ``POST`` sent again is one, however many others there are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from celery_streams.contracts import JSON
from celery_streams.protocol import ClientProducer, Creation, Post, Posted
from celery_streams.stores.s2.serving import S2ProtocolStore
from tests.conftest import SettingsFor
from tests.s2.conftest import Place
from tests.s2.test_serving import PATH, Both
from tests.servers import ValkeyProcess


@pytest.fixture
def run(place: Place, valkey: ValkeyProcess, settings_for: SettingsFor) -> Callable[..., Any]:
    """``run(work)``: calls it with the stores of two gateways, on an event loop of its own."""
    valkey.flush()

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[list[S2ProtocolStore]]:
        stores = [Both(place, valkey, settings_for).store for _ in range(2)]
        try:
            yield stores
        finally:
            for store in stores:
                await store.aclose()

    def call(work: Any) -> Any:
        async def main() -> Any:
            async with connected() as stores:
                return await work(*stores)

        return asyncio.run(main())

    return call


async def _post(store: S2ProtocolStore, name: str, seq: int = 0, epoch: int = 0) -> Posted:
    chunk = b'"%s %d"' % (name.encode(), seq)
    return await store.post(PATH, Post(JSON, (chunk,), producer=ClientProducer(name, epoch, seq)))


def test_a_post_sent_again_behind_producers_with_long_names(run: Callable[..., Any]) -> None:
    """A record has room for a few such names only; the log has the others."""

    async def work(store: S2ProtocolStore, other: S2ProtocolStore) -> None:
        await store.create(PATH, Creation(JSON, ()))
        names = [f"{number:02}" + "x" * 254 for number in range(40)]
        for name in names:
            await _post(store, name)
        again = await _post(other, names[0])
        assert again.duplicate
        assert (await other.read(PATH, 0)).head.end == 40

    run(work)


def test_a_post_sent_again_to_another_gateway(run: Callable[..., Any]) -> None:
    """That remembers of its producer only what it was told itself, long ago."""

    async def work(here: S2ProtocolStore, there: S2ProtocolStore) -> None:
        await here.create(PATH, Creation(JSON, ()))
        await _post(here, "busy", 0)
        await _post(there, "busy", 1)
        for number in range(40):
            await _post(there, f"other-{number}")
        assert (await _post(here, "busy", 1)).duplicate
        assert not (await _post(here, "busy", 2)).duplicate
        assert (await here.read(PATH, 0)).head.end == 43

    run(work)


def test_the_last_post_of_a_producer_that_has_begun_anew(run: Callable[..., Any]) -> None:
    """The numbers of its earlier epoch are higher, and say nothing any more."""

    async def work(here: S2ProtocolStore, there: S2ProtocolStore) -> None:
        await here.create(PATH, Creation(JSON, ()))
        for seq in range(3):
            await _post(here, "busy", seq)
        await _post(here, "busy", 0, epoch=1)
        for number in range(40):
            await _post(here, f"other-{number}")
        assert (await _post(there, "busy", 0, epoch=1)).duplicate
        assert not (await _post(there, "busy", 1, epoch=1)).duplicate

    run(work)
