"""``self.streams``: the run-scoped streams of a running task."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery_streams.contracts import Head, Offset
from celery_streams.errors import ConfigurationError
from celery_streams.reading.reader import Reader
from celery_streams.slots import Slot
from celery_streams.task.identity import RunIdentity
from celery_streams.task.repetition import RepetitionWriters
from celery_streams.writing.writer import Writer
from celery_streams.writing.writers import AttemptWriters

if TYPE_CHECKING:
    from celery_streams.task.guardrail import Guardrail

T = TypeVar("T")

#: The target that is no run.
SESSION = "session"


class RunStreams:
    """The streams of the run that a task is executing, and of its relatives.

    ``target`` is ``"self"`` (this run), ``"parent"``, ``"root"``, or a run id; a run without a
    parent or root is its own. ``"session"`` is the chat of the chat agent that has sent the task:
    chunks go to the page, and are not part of the answer. ``key`` names one of a run's streams.
    Thread-safe: pass it to the threads a task starts.
    """

    def __init__(
        self,
        identity: RunIdentity,
        writers: Callable[[], AttemptWriters],
        *,
        attempt_number: Callable[[], int],
        require_run: Callable[[str], None],
        open_reader: Callable[[Slot, Offset, float | None], Reader[Any]],
        head: Callable[[Slot], Head],
        drain_timeout: float,
        guardrail: Guardrail | None,
    ) -> None:
        self._identity = identity
        self._writers = writers
        self._attempt_number = attempt_number
        self._require_run = require_run
        self._open_reader = open_reader
        self._head = head
        self._drain_timeout = drain_timeout
        self._guardrail = guardrail
        self._by_name: dict[tuple[str, str], Writer] = {}

    @property
    def run_id(self) -> str:
        """The run's id: the task id."""
        return self._identity.run_id

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, from 1. Costs a round trip only from the second on.

        Raises:
            StreamFenced: a later attempt has taken over; this one should stop.
        """
        return self._attempt_number()

    def write(self, chunk: Any, *, key: str = "default", target: str = "self") -> None:
        """Queue one chunk. See :meth:`Writer.write`.

        Never a round trip, but for the first use of the streams in a later attempt of the run:
        it takes over from the attempts before. If the run has succeeded already (its message
        was delivered twice), this attempt's chunks are dropped, with one warning.
        """
        if self._guardrail is not None:
            self._guardrail("write")
        writer = self._by_name.get((key, target))
        if writer is None:
            writer = self._named(key, target)
        writer.write(chunk)

    def append(
        self,
        chunk: Any,
        *,
        key: str = "default",
        target: str = "self",
        timeout: float | None = None,
    ) -> int:
        """Write one chunk, wait until it is durable, return its sequence number.

        ``-1`` for a chunk that was dropped, because the run had succeeded already.
        """
        self.guard("append")
        return self._named(key, target).append(chunk, timeout=timeout)

    def writer(
        self, *, key: str = "default", target: str = "self", content_type: str | None = None
    ) -> Writer:
        """A writer on one stream, best used as a context manager (it waits at the end).

        ``content_type`` is that of a stream this writer opens: ``application/json`` (default),
        ``text/*`` for str chunks, anything else for bytes chunks.
        """
        self.guard("writer")
        return self._open(key, target, content_type)

    @overload
    def pipe(
        self, source: AsyncIterable[T], *, key: str = ..., target: str = ...
    ) -> AsyncIterator[T]: ...
    @overload
    def pipe(self, source: Iterable[T], *, key: str = ..., target: str = ...) -> Iterator[T]: ...
    def pipe(
        self,
        source: Iterable[T] | AsyncIterable[T],
        *,
        key: str = "default",
        target: str = "self",
    ) -> Iterator[T] | AsyncIterator[T]:
        """Yield the items of ``source`` on while writing them (async if the source is)."""
        self.guard("pipe")
        writer = self._open(key, target)
        if isinstance(source, AsyncIterable):
            return writer.apipe(source)
        return writer.pipe(source)

    def read(
        self,
        run_id: str | None = None,
        key: str = "default",
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
    ) -> Reader[Any]:
        """Read a stream of another run (or this one). See :meth:`celery_streams.Streams.read`."""
        self.guard("read")
        slot = Slot.run(self.run_id if run_id is None else run_id, key)
        return self._open_reader(slot, offset, timeout)

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until everything this attempt wrote is durable (default ``drain_timeout``).

        Raises:
            StreamError: it is not; ``unsent`` says how many chunks.
        """
        self._writers().drain(self._drain_timeout if timeout is None else timeout)

    def head(self, key: str = "default") -> Head:
        """The state of one of this run's streams: ``head.end`` chunks are durable.

        A retried task continues from there. Raises :class:`StreamNotFound` if nothing has been
        written yet.
        """
        return self._head(Slot.run(self.run_id, key))

    def close(self, key: str = "default", *, target: str = "self") -> Head:
        """End one stream now; without this, streams end with the run."""
        if target == SESSION:
            raise ConfigurationError("a session outlives its runs: end it from outside a task")
        slot = Slot.run(self._identity.resolve(target), key)
        return self._writers().close(slot, self._drain_timeout)

    def guard(self, call: str) -> None:
        """Warn a chat-agent run that uses run-scoped streams, the first time."""
        if self._guardrail is not None:
            self._guardrail(call)

    def forget_writers(self) -> None:
        """Start anew in a forked child: its parent's buffers are not its own."""
        self._by_name = {}

    def _named(self, key: str, target: str) -> Writer:
        writer = self._by_name.get((key, target))
        if writer is None:
            writer = self._by_name[key, target] = self._open(key, target)
        return writer

    def _open(self, key: str, target: str, content_type: str | None = None) -> Writer:
        if target == SESSION:
            return self._writers().writer(self._session_slot(), content_type)
        run_id = self._identity.resolve(target)
        slot = Slot.run(run_id, key)
        identity, writers = self._identity, self._writers()
        relatives = (identity.run_id, identity.parent_id, identity.root_id)
        if run_id not in relatives and not isinstance(writers, RepetitionWriters):
            self._require_run(run_id)
        return writers.writer(slot, content_type)

    def _session_slot(self) -> Slot:
        if self._identity.session is None:
            raise ConfigurationError(
                'target="session" is for tasks that a chat agent has sent; this one has no session'
            )
        return Slot.session(self._identity.session, "out")
