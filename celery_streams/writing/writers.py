"""All the writers of one attempt: :class:`AttemptWriters`."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from celery_streams.contracts import JSON, Attempt, Credentials, Head, Producer, Store
from celery_streams.credentials.cache import CredentialCache
from celery_streams.errors import (
    ConfigurationError,
    CredentialsRejected,
    StoreUnavailable,
    StreamError,
    StreamNotFound,
)
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.writing.channel import Channel
from celery_streams.writing.policy import Action, decide, pause_before
from celery_streams.writing.writer import Writer

OpenChannel = Callable[[Slot, Producer, str], Channel]

#: Channels that were replaced and of whose losses nobody has been told yet, at most.
_MOST_ENDED = 20


def raise_first(failures: Sequence[StreamError]) -> None:
    """Raise the first, if there is any, with a note of each of the others."""
    if not failures:
        return
    first, *others = failures
    for other in others:
        first.add_note(str(other))
    raise first


class AttemptWriters:
    """Opens writers for one attempt, one channel a slot, and drains them all. Thread-safe."""

    def __init__(
        self,
        attempt: Attempt,
        open_channel: OpenChannel,
        store: Store,
        cache: CredentialCache,
        settings: StreamsSettings,
    ) -> None:
        self.attempt = attempt
        self._open_channel = open_channel
        self._store = store
        self._cache = cache
        self._settings = settings
        self._channels: dict[Slot, Channel] = {}
        self._lock = threading.Lock()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The streams opened so far."""
        return tuple(self._channels)

    def writer(self, slot: Slot, content_type: str | None = None) -> Writer:
        """A writer on ``slot``; all writers of a slot share one channel, so they keep order.

        Raises:
            ConfigurationError: the slot is open with another content type.
        """
        with self._lock:
            channel = self._channels.get(slot)
            if channel is None:
                # The writing run is in the fence's name; the rest must not repeat in a fork.
                producer = Producer(secrets.token_hex(6), self.attempt)
                channel = self._open_channel(slot, producer, content_type or JSON)
                self._channels[slot] = channel
        if content_type not in (None, channel.content_type):
            raise ConfigurationError(
                f"{slot} is open as {channel.content_type}, so it cannot be written as "
                f"{content_type}; use another key"
            )
        return self._open(channel)

    def drain(self, timeout: float) -> None:
        """Wait until everything written so far is durable, ``timeout`` seconds in all.

        Raises:
            StreamError: the first stream's failure; the others are named in its notes.
        """
        deadline = time.monotonic() + timeout
        failures: list[StreamError] = []
        for channel in self._to_drain():
            try:
                if channel.error is None:
                    channel.flush(max(0.0, deadline - time.monotonic()))
            except StreamError as error:
                if channel.error is None:
                    failures.append(error)
            ended = channel.unreported
            if ended is not None and not self._drops(channel, ended):
                failures.append(ended)
        raise_first(failures)

    def _open(self, channel: Channel) -> Writer:
        return Writer(channel, self._cache, self._settings)

    def _drops(self, channel: Channel, error: StreamError) -> bool:
        """Whether what ended the channel means that nobody misses its chunks."""
        return False

    def _to_drain(self) -> list[Channel]:
        return list(self._channels.values())

    def seal(self, refusal: StreamError) -> None:
        """Accept nothing more on any stream; what was accepted is still sent."""
        for channel in list(self._channels.values()):
            channel.seal(refusal)

    def close(self, slot: Slot, timeout: float) -> Head:
        """Flush and end one stream; a stream nobody has written to yet is opened first."""
        channel = self._channels.get(slot)
        if channel is not None:
            channel.flush(timeout)
        content_type = self._content_type(slot) if channel is None else channel.content_type
        began, failures = time.monotonic(), 0
        while True:
            try:
                credentials = self._cache.get(slot, content_type=content_type)
                try:
                    return self._store.close(slot, credentials, self.attempt)
                except (CredentialsRejected, StreamNotFound):
                    self._renew(credentials, began + timeout)
            except StoreUnavailable as error:
                failures += 1
                if decide(error, failures, time.monotonic() - began, timeout).action is Action.END:
                    raise
                time.sleep(pause_before(failures))

    def _content_type(self, slot: Slot) -> str:
        """Of a stream that others have opened, if anybody has."""
        try:
            return self._store.head(slot).content_type
        except (StreamNotFound, StoreUnavailable):
            return JSON

    def _renew(self, credentials: Credentials, deadline: float) -> None:
        self._cache.evict(credentials)
        if time.monotonic() > deadline:
            raise CredentialsRejected(
                f"new credentials for {credentials.slot} were refused until the timeout"
            )


class AppWriters(AttemptWriters):
    """Writers of a task, or of a process, on streams that are not its run's.

    A channel that has ended is replaced for whoever opens a writer next: here, other than in a
    run, its stream may be opened again.
    """

    def __init__(
        self,
        attempt: Attempt,
        open_channel: OpenChannel,
        store: Store,
        cache: CredentialCache,
        settings: StreamsSettings,
    ) -> None:
        super().__init__(attempt, open_channel, store, cache, settings)
        self._ended: deque[Channel] = deque(maxlen=_MOST_ENDED)

    def writer(self, slot: Slot, content_type: str | None = None) -> Writer:
        """See :meth:`AttemptWriters.writer`."""
        with self._lock:
            channel = self._channels.get(slot)
            if channel is not None and channel.error is not None:
                del self._channels[slot]
                if channel.unreported is not None:
                    self._ended.append(channel)
        return super().writer(slot, content_type)

    def _to_drain(self) -> list[Channel]:
        return [*self._ended, *super()._to_drain()]
