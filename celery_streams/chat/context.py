"""``self.chat``: what a chat-agent task writes to its session."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery_streams.chat.adapters import pipe
from celery_streams.chat.requests import Message, Trigger, text_of
from celery_streams.chat.response import ChatResponse
from celery_streams.contracts import Offset
from celery_streams.errors import ConfigurationError
from celery_streams.reading.reader import Reader
from celery_streams.slots import Slot
from celery_streams.writing.writer import Writer
from celery_streams.writing.writers import AttemptWriters

if TYPE_CHECKING:
    from celery_streams.chat.turn import Turn

OpenReader = Callable[[Slot, Offset, float | None], Reader[Any]]

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

    def read(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> Reader[Any]:
        """Read the session's ``out`` stream. See :meth:`celery_streams.Streams.read`."""
        return self._open_reader(self._slot, offset, timeout)

    def forget_writers(self) -> None:
        """Start anew in a forked child."""
        self._writer = None


class ChatInbox:
    """Messages that were sent while the turn runs."""

    def __init__(self, take: Callable[[], list[Message]]) -> None:
        self._take = take

    def pending(self) -> list[Message]:
        """Read them: the running turn answers them, and they start none of their own.

        One round trip. What is not read starts the next turn.
        """
        return self._take()


class Chat:
    """What ``self.chat`` is in a running chat-agent task."""

    def __init__(self, session_id: str, turn: Turn, open_reader: OpenReader) -> None:
        self.session_id = session_id
        self.stream = ChatStream(session_id, turn.writers, open_reader)
        self.inbox = ChatInbox(turn.take)
        self._turn = turn

    @property
    def response(self) -> ChatResponse:
        """The answer."""
        return self._turn.response

    @property
    def messages(self) -> list[Message]:
        """The history, as the AI SDK's UI messages; the last one is what is to be answered."""
        return self._turn.messages

    @property
    def message(self) -> Message | None:
        """The message to answer (when regenerating, the one before the answer)."""
        return self._turn.message

    @property
    def text(self) -> str:
        """The text of :attr:`message`."""
        return text_of(self.message)

    @property
    def trigger(self) -> Trigger:
        """``submit-message`` or ``regenerate-message``."""
        return self._turn.begun.request.trigger

    @property
    def body(self) -> dict[str, Any]:
        """What else the client has sent with its message."""
        return self._turn.begun.request.body

    @property
    def turn_id(self) -> str:
        """The turn; the same for all its attempts."""
        return self._turn.begun.turn_id

    @property
    def attempt(self) -> int:
        """Which attempt of the turn this is, from 1."""
        return self._turn.begun.number

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked this turn to stop. No round trip."""
        return self._turn.stopping.is_set()

    def pipe(self, source: Any) -> Any:
        """Write a model's answer as it comes; ends early if the turn is to stop.

        An async source is cancelled while it is waited for, an iterable ends at its next item.

        ``source``: an (async) iterable of texts or of chunks of the UI message stream, or what
        an adapter knows (see :mod:`celery_streams.chat.adapters`). Returns the text of the answer
        it has written; for an async source called within an event loop, an awaitable of it.
        """
        return pipe(source, self.response)


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
