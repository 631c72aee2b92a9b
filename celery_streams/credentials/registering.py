"""A control plane elsewhere, whose streams are known to the runs' records all the same."""

from __future__ import annotations

from typing import Protocol

from celery_streams.contracts import JSON, Authority, Credentials, Head
from celery_streams.credentials.authority import RedisAuthority
from celery_streams.errors import RunFinished, StreamNotFound
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot


class EndingAuthority(Authority, Protocol):
    """An authority that can also end a stream, for whoever runs the system."""

    def end(self, slot: Slot, state: str) -> Head:
        """End the stream as ``state``; an ended one stays as it is."""
        ...


class RegisteringAuthority:
    """Registers each stream in Redis (on its run, in the index) around another authority.

    The other authority makes the stream and mints. A run may end meanwhile::

        time 0   the stream is registered: the run has not ended.
        time 1   the run ends; whoever ends it closes the streams that are registered, but there
                 is none yet.
        time 2   the other authority makes the stream.
        time 3   it is registered again, which is refused, and the stream is closed.

    Thread-safe; belongs to the process that made ``link``.
    """

    def __init__(
        self, link: RedisLink, layout: Layout, settings: StreamsSettings, inner: EndingAuthority
    ) -> None:
        self._registrar = RedisAuthority(link, layout, settings)
        self._inner = inner

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """See :meth:`celery_streams.contracts.Authority.initialize`."""
        self._registrar.register(slot, content_type=content_type)
        credentials = self._inner.initialize(slot, content_type=content_type)
        try:
            self._registrar.register(slot, content_type=content_type)
        except RunFinished as finished:
            self._inner.end(slot, finished.state)
            raise
        return credentials

    def revoke(self, slot: Slot) -> int:
        """See :meth:`celery_streams.contracts.Authority.revoke`."""
        return self._inner.revoke(slot)

    def end(self, slot: Slot, state: str) -> Head | None:
        """End the stream as ``state``, if it was made at all."""
        try:
            return self._inner.end(slot, state)
        except StreamNotFound:
            return None

    def shut(self) -> None:
        """Close the other authority's connections."""
        if (shut := getattr(self._inner, "shut", None)) is not None:
            shut()
