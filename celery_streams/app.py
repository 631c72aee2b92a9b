"""The one object a project makes: :class:`Streams`."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from celery_streams.back_ends import AuthorityFactory, BackEnds, StoreFactory, located
from celery_streams.chunks import decode as decode_chunk
from celery_streams.contracts import Authority, Head, Offset, Store
from celery_streams.errors import ConfigurationError, StreamError, StreamNotFound
from celery_streams.reading.position import Decode
from celery_streams.reading.reader import AsyncReader, Reader
from celery_streams.runs.oversight import RunOversight
from celery_streams.runs.results import ResultStates
from celery_streams.runtime import Runtime
from celery_streams.sessions import Session
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stats import Counts
from celery_streams.subscribing import Subscribing
from celery_streams.task.attempt import RunningAttempt
from celery_streams.task.current import running
from celery_streams.task.lifecycle import Lifecycle
from celery_streams.task.own_writers import OwnWriters
from celery_streams.tokens import Tokens
from celery_streams.typed import TypedStream
from celery_streams.writing.writer import Writer

if TYPE_CHECKING:
    from celery import Celery

T = TypeVar("T")

logger = logging.getLogger("celery_streams")

#: Broker transports whose messages come back only after their visibility timeout.
_POLLING_TRANSPORTS = ("redis", "rediss", "sqs", "sentinel")
_DEFAULT_VISIBILITY_TIMEOUT = 3600.0


class Streams(Subscribing):
    """Durable, resumable streams for the tasks of a Celery app.

    ::

        app = Celery("proj", broker=..., backend=...)
        streams = Streams(app)              # or Streams().init_app(app)

    Nothing is connected, started or read before it is needed, and nothing of it crosses a
    fork: every process has its own connections, its own cache and its own flusher.

    Args:
        app: the Celery app whose tasks get ``self.streams``.
        authority, store: other back ends, as an object or as a factory
            ``(link, layout, settings)`` that is called once in every process.
        settings: any of :class:`StreamsSettings`, over environment and ``app.conf``.
    """

    def __init__(
        self,
        app: Celery | None = None,
        *,
        authority: Authority | AuthorityFactory | None = None,
        store: Store | StoreFactory | None = None,
        **settings: Any,
    ) -> None:
        self._app: Celery | None = None
        self._overrides = settings
        self._back_ends = BackEnds(authority, store)
        self._settings: StreamsSettings | None = None
        self._runtime: Runtime | None = None
        self._results: ResultStates | None = None
        self._own_writers = OwnWriters(self)
        self._lock = threading.Lock()
        self._attempts: weakref.WeakSet[RunningAttempt] = weakref.WeakSet()
        _live.add(self)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> Streams:
        """Attach to ``app``; returns itself.

        Raises:
            ConfigurationError: already attached to another app, or ``app`` has streams.
        """
        if self._app is not None and self._app is not app:
            raise ConfigurationError("this Streams is attached to another app already; make two")
        if isinstance(getattr(app, "streams", None), Streams):
            if self._app is app:
                return self
            raise ConfigurationError(f"the app {app.main!r} has Streams already; use app.streams")
        self._app = app
        app.streams = self
        Lifecycle(self, app).install()
        return self

    @property
    def app(self) -> Celery | None:
        """The Celery app it is attached to."""
        return self._app

    @property
    def settings(self) -> StreamsSettings:
        """The settings in force. Raises :class:`ConfigurationError`."""
        if self._settings is None:
            conf = self._app.conf if self._app is not None else None
            self._settings = StreamsSettings.load(conf, self._overrides)
        return self._settings

    @property
    def runtime(self) -> Runtime:
        """This process's connections, cache and flusher; made at first use."""
        runtime = self._runtime
        if runtime is None:
            with self._lock:
                if self._runtime is None:
                    conf = self._app.conf if self._app is not None else None
                    address, back_ends = located(self.settings, conf, self._back_ends)
                    self._runtime = Runtime(address, self.settings, back_ends)
                runtime = self._runtime
        return runtime

    # Reading

    def read(
        self,
        run_id: str,
        key: str = "default",
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
    ) -> Reader[Any]:
        """Iterate over the chunks of a run's stream, live, until it ends.

        May be called before the stream exists: nothing is missed. Resume after a
        disconnection with ``offset=reader.offset``.

        Args:
            run_id: the task id.
            key: which of the run's streams.
            offset: a sequence number; negative for the last n chunks; ``"now"`` for new ones.
            timeout: seconds without a chunk after which ``ReadTimeout`` is raised; ``None``
                waits for ever.

        Raises (while iterating):
            ReadTimeout, OffsetGone, StoreUnavailable, ConfigurationError.
        """
        self.guard("read")
        return self.open_reader(Slot.run(run_id, key), offset, timeout)

    def aread(
        self,
        run_id: str,
        key: str = "default",
        *,
        offset: Offset = 0,
        timeout: float | None = 60.0,
    ) -> AsyncReader[Any]:
        """:meth:`read` for an event loop: ``async for chunk in streams.aread(run_id)``."""
        self.guard("aread")
        return self.open_async_reader(Slot.run(run_id, key), offset, timeout)

    def head(self, run_id: str, key: str = "default") -> Head:
        """The state of a stream. Raises :class:`StreamNotFound`."""
        return self.runtime.store.head(Slot.run(run_id, key))

    def keys(self, run_id: str) -> list[str]:
        """The keys of the streams opened on a run, sorted.

        Raises:
            StreamNotFound: there are none (yet), or they have expired.
            StoreUnavailable: the store cannot be reached.
        """
        record = self.runtime.registry.describe(run_id)
        if not record.keys:
            raise StreamNotFound(f"run {run_id} has no streams (yet), or they have expired")
        return list(record.keys)

    def session(self, session_id: str) -> Session:
        """A chat session, by its caller-chosen id."""
        return Session(self, session_id)

    # Writing

    def write_to(
        self,
        run_id: str,
        key: str = "default",
        *,
        create: bool = False,
        content_type: str | None = None,
    ) -> Writer:
        """A writer on a run's stream, from outside its task; use it as a context manager.

        Args:
            run_id: the task id.
            key: which of the run's streams.
            create: open the stream even of a run nothing is known of yet (queued, or running
                without having written).
            content_type: of a stream this opens: ``application/json`` (default), ``text/*`` for
                str chunks, anything else for bytes chunks.

        Raises:
            StreamNotFound: no such run, as far as the store and the result backend know.
            RunFinished: the run has ended.
            StoreUnavailable: the store cannot be reached.
        """
        self.guard("write_to")
        slot = Slot.run(run_id, key)
        if not create:
            self.require_run(run_id)
        return self.open_writer(slot, content_type)

    def define(self, key: str, kind: type[T]) -> TypedStream[T]:
        """A typed stream: ``write`` validates, ``read`` yields ``kind``.

        ``kind`` is a pydantic model or anything else pydantic validates.
        """
        return TypedStream(self, key, kind)

    # Administration

    def stats(self) -> Counts:
        """What this process did so far."""
        return self.runtime.stats.snapshot()

    def revoke(self, run_id: str, key: str = "default") -> int:
        """Withdraw the write credentials of a stream; returns how many mints that were.

        Writers that are still entitled to write initialize again, and lose nothing.
        """
        return self.runtime.authority.revoke(Slot.run(run_id, key))

    def token(self, scopes: Iterable[str], ttl: float = 3600.0) -> str:
        """An access token for the gateway that allows ``scopes`` for ``ttl`` seconds.

        For example ``streams.token([f"read:runs/{result.id}"])``; :mod:`celery_streams.tokens`
        tells what a scope may say.

        Raises:
            ConfigurationError: no ``secret`` is set, or a scope or ``ttl`` cannot be.
        """
        return Tokens(self.settings).mint(scopes, ttl)

    def reset(self) -> None:
        """Forget the credentials this process remembers; the fleet's stay."""
        self.runtime.cache.reset()

    # For the other rooms of this package

    def open_reader(
        self, slot: Slot, offset: Offset, timeout: float | None, decode: Decode = decode_chunk
    ) -> Reader[Any]:
        """A reader of any stream."""
        return Reader(
            self.runtime.store,
            slot,
            offset=offset,
            timeout=timeout,
            recheck=self.settings.recheck_interval,
            decode=decode,
            on_idle=(lambda: self.end_if_over(slot.owner)) if slot.scope == "run" else None,
            ends_with_run=not self.runtime.records_runs,
        )

    def open_async_reader(
        self, slot: Slot, offset: Offset, timeout: float | None, decode: Decode = decode_chunk
    ) -> AsyncReader[Any]:
        """An asyncio reader of any stream; must be called inside the event loop."""

        async def on_idle() -> str | None:
            return await asyncio.to_thread(self.end_if_over, slot.owner)

        return AsyncReader(
            self.runtime.async_store(),
            slot,
            offset=offset,
            timeout=timeout,
            recheck=self.settings.recheck_interval,
            decode=decode,
            on_idle=on_idle if slot.scope == "run" else None,
            ends_with_run=not self.runtime.records_runs,
        )

    def open_writer(self, slot: Slot, content_type: str | None = None) -> Writer:
        """A writer that belongs to no run. The task that opens it, if any, drains it."""
        return self._own_writers.here().writer(slot, content_type)

    def append_to(self, slot: Slot, chunk: Any, timeout: float | None) -> int:
        """See :meth:`OwnWriters.append`."""
        return self._own_writers.append(slot, chunk, timeout)

    def close_stream(self, slot: Slot) -> Head:
        """End a stream from outside a task."""
        return self._own_writers.here().close(slot, self.settings.drain_timeout)

    def require_run(self, run_id: str) -> None:
        """See :meth:`RunOversight.require`."""
        self._oversight().require(run_id)

    def end_if_over(self, run_id: str) -> str | None:
        """See :meth:`RunOversight.end_if_over`."""
        return self._oversight().end_if_over(run_id)

    def redelivery_grace(self, task: Any) -> float:
        """Seconds after which the broker delivers a lost worker's message again, if it does."""
        app = self._app
        if getattr(task, "retry_on_worker_lost", False):
            return float(task.default_retry_delay or 0)
        if app is None or not getattr(task, "acks_late", False):
            return 0.0
        url = app.conf.broker_url or ""
        first = url if isinstance(url, str) else next(iter(url), "")
        scheme = first.partition("://")[0].partition("+")[0]
        if scheme not in _POLLING_TRANSPORTS:
            return 0.0
        options = app.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT))

    def track(self, attempt: RunningAttempt) -> None:
        """Remember a running attempt, so that a forked child can let go of it."""
        self._attempts.add(attempt)

    def after_fork_in_child(self) -> None:
        """Drop everything with a connection, a thread or a lock: it is the parent's."""
        self._lock = threading.Lock()
        self._results = None
        self._own_writers.forget()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.after_fork()
        for attempt in list(self._attempts):
            attempt.after_fork()

    def close(self) -> None:
        """Make durable what this process has accepted, and close its connections."""
        runtime, self._runtime = self._runtime, None
        results, self._results = self._results, None
        self._own_writers.forget()
        if results is not None:
            results.close()
        if runtime is not None:
            runtime.close()

    def guard(self, call: str) -> None:
        """Warn, once per run, a chat-agent task that uses run-scoped streams."""
        attempt = running.get()
        if attempt is not None and attempt.chat is not None:
            attempt.streams.guard(call)

    def _celery(self) -> Celery | None:
        return self._app

    def _oversight(self) -> RunOversight:
        return RunOversight(self.runtime.registry, self._result_states())

    def _result_states(self) -> ResultStates | None:
        with self._lock:
            if self._results is None and self._app is not None:
                self._results = ResultStates(self._app, self.settings.socket_timeout)
            return self._results


_live: weakref.WeakSet[Streams] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for streams in list(_live):
        streams.after_fork_in_child()


def _at_exit() -> None:
    for streams in list(_live):
        try:
            streams.close()
        except StreamError as error:
            logger.warning("while closing: %s", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
