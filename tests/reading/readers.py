"""Either reader behind one interface, and what tests ask the server about readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from celery_streams.reading.reader import AsyncReader, Reader
from celery_streams.redis.layout import Layout
from celery_streams.slots import Slot
from tests.servers import ServerProcess
from tests.servers.children import eventually
from tests.stores.contract.backend import SLOT, Backend, LoopStore


class LoopReader(Iterator[Any]):
    """An :class:`AsyncReader` for sync tests: each step runs in the store's event loop."""

    def __init__(self, loop: LoopStore, slot: Slot, *, on_idle: Any = None, **options: Any) -> None:
        async def asked() -> str | None:
            return on_idle()

        self._loop = loop
        self.inner: AsyncReader[Any] = AsyncReader(
            loop.inner, slot, on_idle=None if on_idle is None else asked, **options
        )

    @property
    def offset(self) -> int:
        return self.inner.offset

    @property
    def closed(self) -> str | None:
        return self.inner.closed

    def __next__(self) -> Any:
        try:
            return self._loop.run(anext(self.inner))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        self._loop.run(self.inner.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


AnyReader = Reader | LoopReader


def read(backend: Backend, slot: Slot = SLOT, **options: Any) -> AnyReader:
    """A reader of the backend's kind, which gives up after 20 s if the test does not say."""
    options.setdefault("timeout", 20.0)
    if backend.loop is not None:
        return LoopReader(backend.loop, slot, **options)
    return Reader(backend.store, slot, **options)


def listeners(server: ServerProcess, slot: Slot = SLOT) -> int:
    """How many connections listen to the stream."""
    channel = Layout("cs").live(slot)
    ((_, count),) = server.client().execute_command("PUBSUB SHARDNUMSUB", channel)
    return int(count)


def wait_for_listeners(server: ServerProcess, count: int = 1, slot: Slot = SLOT) -> None:
    """Wait until so many connections listen to the stream."""
    eventually(lambda: listeners(server, slot) == count, f"{count} listen to {slot}")
