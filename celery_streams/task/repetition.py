"""An execution of a run that has succeeded already: its chunks go nowhere, its task goes on.

A redelivered message says of itself that it may be one, so its attempt asks first
(:class:`RepetitionWriters`). One that was published twice does not: its attempt learns of it by the
refusal of its first chunk (:class:`FirstWriters`), since asking would cost each task a round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import states

from celery_streams.chunks import too_large
from celery_streams.contracts import JSON, Head, Producer, Store
from celery_streams.credentials.cache import CredentialCache
from celery_streams.errors import (
    RunFinished,
    StoreUnavailable,
    StreamClosed,
    StreamError,
    StreamFenced,
    StreamNotFound,
)
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.writing.channel import Channel
from celery_streams.writing.writer import NOWHERE, Writer
from celery_streams.writing.writers import AttemptWriters

#: What a stream of the run, or one that the run has written to, refuses a repetition with.
_REFUSALS = (RunFinished, StreamClosed, StreamFenced)


class RepetitionWriter(Writer):
    """Checks chunks as ever and drops them; to ``wait()`` and ``flush()`` nothing was written."""

    def write(self, chunk: Any) -> None:
        """Check ``chunk``."""
        data = self._encode(chunk)
        if len(data) > self._limit:
            raise too_large(data, self._limit, self.slot)

    def append(self, chunk: Any, *, timeout: float | None = None) -> int:
        """Check ``chunk``; returns ``-1``, because it has no sequence number."""
        self.write(chunk)
        return NOWHERE


class RepetitionWriters(AttemptWriters):
    """Opens writers that drop what they are given. Opens no stream, and closes none."""

    def writer(self, slot: Slot, content_type: str | None = None) -> Writer:
        """A writer that drops."""
        channel = Channel(
            slot, Producer("", self.attempt), content_type or JSON, self._settings, _never
        )
        return RepetitionWriter(channel, self._cache, self._settings)

    def close(self, slot: Slot, timeout: float) -> Head:
        """The stream as the run has left it."""
        return _as_left(self._store, slot)


class FirstWriter(Writer):
    """Drops its chunks when they are refused because the run had succeeded before."""

    def __init__(
        self,
        channel: Channel,
        cache: CredentialCache,
        settings: StreamsSettings,
        drops: Callable[[Channel, StreamError], bool],
    ) -> None:
        super().__init__(channel, cache, settings)
        self._drops = drops

    def _failed(self, error: StreamError) -> None:
        if not self._drops(self._channel, error):
            raise error
        self._count = 0


class FirstWriters(AttemptWriters):
    """Opens the writers of a first delivery.

    ``repeats`` says that the run had succeeded before, as one of them was told.

    Args:
        state: how the run has ended, if it has; asked when chunks were refused, not before.
        others: see :class:`AttemptWriters`.
    """

    def __init__(self, *others: Any, state: Callable[[], str | None]) -> None:
        super().__init__(*others)
        self.repeats = False
        self._state = state
        self._asked = False

    def close(self, slot: Slot, timeout: float) -> Head:
        """See :meth:`AttemptWriters.close`; a stream of a run that had succeeded is left alone."""
        try:
            return super().close(slot, timeout)
        except _REFUSALS:
            if not self._had_succeeded():
                raise
            return _as_left(self._store, slot)

    def _open(self, channel: Channel) -> Writer:
        return FirstWriter(channel, self._cache, self._settings, self._drops)

    def _drops(self, channel: Channel, error: StreamError) -> bool:
        return isinstance(error, _REFUSALS) and not channel.durable and self._had_succeeded()

    def _had_succeeded(self) -> bool:
        if any(self._is_own(each.slot) and each.durable for each in self._channels.values()):
            return False  # if it has succeeded, by a later attempt: this one was overtaken
        if not self._asked:
            with suppress(StoreUnavailable):
                self.repeats = self._state() == states.SUCCESS
                self._asked = True
        return self.repeats

    def _is_own(self, slot: Slot) -> bool:
        return slot.scope == "run" and slot.owner == self.attempt.run_id


def _as_left(store: Store, slot: Slot) -> Head:
    try:
        return store.head(slot)
    except StreamNotFound:
        return Head(slot, 0, states.SUCCESS)


def _never(channel: Channel) -> None:
    raise AssertionError(f"a repetition wrote to {channel.slot}")
