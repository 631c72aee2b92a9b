"""Event loops for sync tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from celery_streams import Streams

T = TypeVar("T")


def in_loop(streams: Streams, main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` in a loop of its own, and close the connections that ``streams`` made in it."""

    async def run() -> T:
        try:
            return await main
        finally:
            store: Any = streams.runtime.async_store()
            await store.aclose()

    return asyncio.run(run())
