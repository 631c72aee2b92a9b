"""An execution of a run that has succeeded already: its chunks go nowhere, its task goes on."""

from __future__ import annotations

from typing import Any

from celery import states

from celery_streams.chunks import too_large
from celery_streams.contracts import JSON, Head, Producer
from celery_streams.errors import StreamNotFound
from celery_streams.slots import Slot
from celery_streams.writing.channel import Channel
from celery_streams.writing.writer import Writer
from celery_streams.writing.writers import AttemptWriters

#: What ``append()`` returns for a chunk that is not in the stream: no chunk has this number.
NOWHERE = -1


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
        try:
            return self._store.head(slot)
        except StreamNotFound:
            return Head(slot, 0, states.SUCCESS)


def _never(channel: Channel) -> None:
    raise AssertionError(f"a repetition wrote to {channel.slot}")
