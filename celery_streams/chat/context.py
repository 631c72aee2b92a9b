"""``self.chat``: what a chat-agent task writes to its session."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar, overload

from celery_streams.contracts import Offset
from celery_streams.errors import ConfigurationError
from celery_streams.reading.reader import Reader
from celery_streams.slots import Slot
from celery_streams.writing.writer import Writer
from celery_streams.writing.writers import AttemptWriters

OpenReader = Callable[[Slot, Offset, float | None], Reader]

T = TypeVar("T")


class ChatStream:
    """The session's ``out`` stream, as the task writes it. Thread-safe."""

    def __init__(
        self, session_id: str, writers: Callable[[], AttemptWriters], open_reader: OpenReader
    ) -> None:
        self._slot = Slot.session(session_id, "out")
        self._writers = writers
        self._open_reader = open_reader
        self._writer: Writer | None = None

    def write(self, chunk: Any) -> None:
        """Queue one chunk; never a round trip. See :meth:`Writer.write`."""
        writer = self._writer
        if writer is None:
            writer = self._writer = self.writer()
        writer.write(chunk)

    def append(self, chunk: Any, *, timeout: float | None = None) -> int:
        """Write one chunk, wait until it is durable, return its sequence number."""
        return self.writer().append(chunk, timeout=timeout)

    def writer(self) -> Writer:
        """A writer, best used as a context manager (it waits at the end)."""
        return self._writers().writer(self._slot)

    @overload
    def pipe(self, source: AsyncIterable[T]) -> AsyncIterator[T]: ...
    @overload
    def pipe(self, source: Iterable[T]) -> Iterator[T]: ...
    def pipe(self, source: Iterable[T] | AsyncIterable[T]) -> Iterator[T] | AsyncIterator[T]:
        """Yield the items of ``source`` on while writing them (async if the source is)."""
        if isinstance(source, AsyncIterable):
            return self.writer().apipe(source)
        return self.writer().pipe(source)

    def read(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> Reader:
        """Read the session's ``out`` stream. See :meth:`celery_streams.Streams.read`."""
        return self._open_reader(self._slot, offset, timeout)

    def forget_writers(self) -> None:
        """Start anew in a forked child."""
        self._writer = None


class ChatResponse:
    """The answer of the turn that is running, as parts on the session's ``out`` stream."""

    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream

    def write(self, part: Any) -> None:
        """Queue one part of the answer; never a round trip."""
        self._stream.write(part)


class Chat:
    """What ``self.chat`` is in a running chat-agent task."""

    def __init__(
        self, session_id: str, writers: Callable[[], AttemptWriters], open_reader: OpenReader
    ) -> None:
        self.session_id = session_id
        self.stream = ChatStream(session_id, writers, open_reader)
        self.response = ChatResponse(self.stream)


def session_id_of(
    run: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """The value of the argument ``name`` in a call of a chat-agent task.

    Raises:
        ConfigurationError: the task has no such argument, or it is not a string.
    """
    value = kwargs.get(name)
    if value is None:
        try:
            value = inspect.signature(run).bind(*args, **kwargs).arguments.get(name)
        except TypeError:
            value = None
    if not isinstance(value, str):
        raise ConfigurationError(
            f"a chat-agent task needs its session id, a string, in the argument {name!r}; "
            "add the argument, or name another with session_argument on the task"
        )
    return value
