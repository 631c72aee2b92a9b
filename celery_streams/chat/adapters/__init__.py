"""What ``self.chat.pipe()`` takes, a module for each library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery_streams.chat.requests import text_of
from celery_streams.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_streams.chat.response import ChatResponse

Stopped = Callable[[], bool]


def pipe(source: Any, response: ChatResponse, stopped: Stopped) -> Any:
    """See :meth:`celery_streams.chat.context.Chat.pipe`."""
    before = len(text_of(response.message))

    def written() -> str:
        return text_of(response.message)[before:]

    if isinstance(source, AsyncIterable):
        consuming = _consume_async(source, response, stopped)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(consuming)
            return written()

        async def awaited() -> str:
            await consuming
            return written()

        return awaited()
    if not isinstance(source, Iterable):
        raise ConfigurationError(
            f"chat.pipe() takes an iterable or an async iterable, not {type(source).__name__}"
        )
    _consume(source, response, stopped)
    return written()


def _consume(source: Iterable[Any], response: ChatResponse, stopped: Stopped) -> None:
    items: Iterator[Any] = iter(source)
    try:
        for item in items:
            if stopped():
                return
            response.write(item)
    finally:
        close = getattr(items, "close", None) or getattr(source, "close", None)
        if close is not None:
            close()


async def _consume_async(
    source: AsyncIterable[Any], response: ChatResponse, stopped: Stopped
) -> None:
    items: AsyncIterator[Any] = aiter(source)
    try:
        async for item in items:
            if stopped():
                return
            response.write(item)
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
