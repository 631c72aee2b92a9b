"""The control plane on Redis: registers streams and mints the right to write to them."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from celery_streams.contracts import JSON, Credentials
from celery_streams.errors import ConfigurationError, RunFinished, StreamError
from celery_streams.redis import recording
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Scope, Slot

logger = logging.getLogger("celery_streams.credentials")

_PACKAGE = "celery_streams.credentials"


class RedisAuthority:
    """Implements :class:`~celery_streams.contracts.Authority`; one round trip a call.

    A grant is a field of the stream's own record, so the store checks it in the script that
    appends, and revoking takes effect with the next append. The grant's expiry is kept in the
    server's time. The credentials carry an expiry in local time, read *before* the call: they
    end no later than the grant, whatever the two clocks say.

    Thread-safe; belongs to the process that made ``link``.
    """

    def __init__(self, link: RedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._link = link
        self._layout = layout
        self._settings = settings
        self._life = settings.credentials_ttl
        self._retention = settings.retention

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """Register ``slot`` and mint credentials that last ``credentials_ttl`` seconds.

        Raises:
            RunFinished: the run has ended; streams of it cannot be opened any more.
            ConfigurationError: the stream exists with another content type, or the server is
                too old.
            StoreUnavailable: the server cannot be reached.
        """
        credentials = Credentials(
            slot=slot,
            mint_id=secrets.token_hex(4),
            token=secrets.token_hex(16),
            expires_at=time.time() + self._life,
        )
        self._register(slot, content_type, credentials.token)
        return credentials

    def register(self, slot: Slot, *, content_type: str = JSON) -> None:
        """Register ``slot`` on its run or session and in the index, without a grant: for
        streams whose chunks are elsewhere. Raises what :meth:`initialize` raises.
        """
        self._register(slot, content_type, "")

    def _register(self, slot: Slot, content_type: str, grant: str) -> None:
        calls: list[Call[Any]] = [
            recording.record(self._layout, self._settings, slot),
            self._initialize(slot, content_type, grant),
        ]
        recorded, initialized = self._link.call_many(calls)
        if isinstance(initialized, Exception):
            raise initialized
        if isinstance(recorded, StreamError):
            # Its entry in the index is for lists and patterns; its chunks do not need it.
            logger.warning("%s is missing in the index of streams: %s", slot, recorded)
        elif recording.sample_due():
            self._tidy(slot.scope)

    def revoke(self, slot: Slot) -> int:
        """Withdraw every grant of ``slot``; returns how many there were.

        Whoever writes with one is refused from the next append on, and initializes anew.
        """
        script = load_script(_PACKAGE, "revoke")
        return self._link.call(Call(script, (self._layout.meta(slot),), (), int))

    def _tidy(self, scope: Scope) -> None:
        """Drop index entries of streams that exist no longer; nothing depends on that."""
        try:
            found = self._link.call(recording.sample(self._layout, scope))
            calls = [recording.exists(self._layout, slot) for slot, _ in found]
            alive = self._link.call_many(calls)
            if dead := recording.dead(found, alive):
                self._link.call(recording.drop(self._layout, scope, dead))
        except StreamError as error:
            logger.info("the index of streams could not be tidied: %s", error)

    def _initialize(self, slot: Slot, content_type: str, grant: str) -> Call[None]:
        layout = self._layout
        return Call(
            load_script(_PACKAGE, "initialize"),
            (layout.meta(slot), layout.keys(slot), layout.owner(slot)),
            (
                layout.live(slot),
                slot.key,
                grant,
                max(1, int(self._life * 1000)),
                max(1, int(self._retention * 1000)),
                content_type,
                int(slot.scope == "run"),
            ),
            lambda reply: _check_initialized(reply, slot, content_type),
        )


def _check_initialized(reply: list[Any], slot: Slot, content_type: str) -> None:
    outcome, *details = (_text(part) for part in reply)
    if outcome == "OK":
        return
    if outcome == "FINISHED":
        raise RunFinished(
            f"run {slot.owner} has finished ({details[0]}), so stream {slot.key!r} of it cannot "
            "be opened; to stream beyond a run's end, write to a session",
            state=details[0],
        )
    raise ConfigurationError(
        f"stream {slot} has the content type {details[0]!r}, so it cannot be opened as "
        f"{content_type!r}; write {details[0]!r} to it, or choose another key"
    )


def _text(part: bytes | str) -> str:
    return part.decode() if isinstance(part, bytes) else part
