"""What ``self.chat.pipe()`` takes.

=====================  =============================================================================
library (extra)        source
=====================  =============================================================================
none                   an (async) iterable of texts, or of chunks of the UI message stream
``pydantic-ai``        ``agent.run_stream_events(...)``
``openai``             a stream of chat completions or of responses; their ``.stream()`` managers
``anthropic``          a stream of messages; its ``messages.stream()`` manager
``langchain``          ``model.stream()``, ``graph.stream(stream_mode="messages")``, and
                       ``astream_events(version="v2")``
=====================  =============================================================================

Which one it is shows in the first item; a library is imported only then.

A model that fails in mid-stream ends in an exception, its library's or :class:`ModelFailed`, and so
does the turn; what is an ``error`` chunk to the page is for the turn to say.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from celery_streams.chat.requests import text_of
from celery_streams.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_streams.chat.response import ChatResponse

#: Who puts greenlets in place of threads, and how to ask whether they have.
_PATCHERS = {"gevent.monkey": "is_module_patched", "eventlet.patcher": "is_monkey_patched"}

Part = dict[str, Any]


class Converter(Protocol):
    """Turns one library's items into chunks."""

    def feed(self, item: Any) -> Iterable[Any]:
        """The chunks that an item amounts to."""
        ...

    def end(self) -> Iterable[Any]:
        """The chunks that are due once there are no more items."""
        ...


class Plain:
    """Items that are texts or chunks already."""

    def feed(self, item: Any) -> Iterable[Any]:
        """The item."""
        return (item,)

    def end(self) -> Iterable[Any]:
        """Nothing."""
        return ()


def pipe(source: Any, response: ChatResponse) -> Any:
    """See :meth:`celery_streams.chat.context.Chat.pipe`."""
    before = len(text_of(response.message))

    def written() -> str:
        return text_of(response.message)[before:]

    if isinstance(source, AsyncIterable) or hasattr(source, "__aenter__"):
        _check_pool()
        consuming = _consume_async(source, response)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(consuming)
            return written()

        async def awaited() -> str:
            await consuming
            return written()

        return awaited()
    if not (isinstance(source, Iterable) or hasattr(source, "__enter__")):
        raise ConfigurationError(
            f"chat.pipe() takes an iterable or an async iterable, not {type(source).__name__}"
        )
    _consume(source, response)
    return written()


def _check_pool() -> None:
    """An event loop belongs to a thread, and greenlets share theirs: of two turns at once, the
    second would take the first one's loop for its own, and wait for nothing."""
    for library, question in _PATCHERS.items():
        module = sys.modules.get(library)
        if module is not None and getattr(module, question)("socket"):
            raise ConfigurationError(
                f"chat.pipe() cannot read an async source under {library.partition('.')[0]}, whose "
                "greenlets share one event loop: start the worker with --pool prefork, threads or "
                "solo, or give it an iterable"
            )


def _consume(source: Any, response: ChatResponse) -> None:
    with ExitStack() as stack:
        if hasattr(source, "__enter__"):
            source = stack.enter_context(source)
        items: Iterator[Any] = iter(source)
        if close := getattr(items, "close", None):
            stack.callback(close)
        converter: Converter | None = None
        for item in items:
            if response.stopping.is_set():
                return
            converter = converter or converter_for(item)
            for part in converter.feed(item):
                response.write(part)
        for part in converter.end() if converter else ():
            response.write(part)


async def _consume_async(source: Any, response: ChatResponse) -> None:
    stopped = response.stopping.is_set
    async with response.stopping.cut_off(), AsyncExitStack() as stack:
        if hasattr(source, "__aenter__"):
            source = await stack.enter_async_context(source)
        items: AsyncIterator[Any] = aiter(source)
        if close := getattr(items, "aclose", None):
            stack.push_async_callback(close)
        first = await anext(items, None)
        if first is None or stopped():
            return
        if _library(first) == "pydantic_ai":
            from celery_streams.chat.adapters.pydantic_ai import converted

            chunks = converted(_continued(first, items))
            stack.push_async_callback(chunks.aclose)
            async for chunk in chunks:
                if stopped():
                    return
                response.write(chunk)
            return
        converter = converter_for(first)
        async for item in _continued(first, items):
            if stopped():
                return
            for part in converter.feed(item):
                response.write(part)
        for part in converter.end():
            response.write(part)


def converter_for(item: Any) -> Converter:
    """The converter for a stream whose first item this is."""
    match _library(item):
        case "openai":
            from celery_streams.chat.adapters.openai import CompletionConverter, ResponseConverter

            kind = str(getattr(item, "type", ""))
            of_a_response = kind.startswith("response.") or kind == "error"
            return ResponseConverter() if of_a_response else CompletionConverter()
        case "anthropic":
            from celery_streams.chat.adapters.anthropic import MessageConverter

            return MessageConverter()
        case "langchain_core":
            from celery_streams.chat.adapters.langchain import LangChainConverter

            return LangChainConverter()
    return Plain()


async def _continued(first: Any, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in items:
        yield item


def _library(item: Any) -> str:
    """The package that an item comes from; LangGraph's are LangChain's in a tuple."""
    if isinstance(item, tuple) and item:
        return "langchain_core" if isinstance(item[0], str) else _library(item[0])
    if isinstance(item, dict):
        return "langchain_core" if {"event", "run_id", "data"} <= item.keys() else ""
    return type(item).__module__.partition(".")[0]
