"""The credentials that writers use: of any stream, by any clock, in a cache of any size."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from typing import Any

import pytest

from celery_streams import Credentials, Slot, StreamsSettings
from celery_streams.contracts import JSON
from celery_streams.credentials import RedisAuthority
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from tests.servers import Proxy
from tests.servers.children import eventually
from tests.writing.conftest import OpenStreams


def test_credentials_of_a_text_stream_are_refreshed_ahead_of_their_expiry(
    open_streams: OpenStreams, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    """The refresh asks for the stream as what it is; as anything else it is refused."""
    caplog.set_level(logging.WARNING)
    streams = open_streams(credentials_ttl=20, refresh_ahead=0.95)
    writer = streams.open_writer(slot, "text/plain")
    writer.append("x")
    first = streams.runtime.cache.peek(slot)

    def refreshed() -> bool:
        writer.append("x")
        return streams.runtime.cache.peek(slot) != first

    eventually(refreshed, "other credentials", timeout=15)
    assert streams.stats().refreshes >= 1
    assert "could not be refreshed" not in caplog.text


def test_a_text_stream_is_closed_whatever_became_of_its_credentials(
    open_streams: OpenStreams, slot: Slot
) -> None:
    """By who has written to it, and by who has not: neither asks for a JSON stream's."""
    streams = open_streams()
    streams.open_writer(slot, "text/plain").append("a line")
    cache = streams.runtime.cache
    cache.evict(cache.get(slot))  # what any failure of another writer does
    assert streams.close_stream(slot).closed is not None


def test_closing_a_stream_survives_a_lost_connection(
    open_streams: OpenStreams, slot: Slot, proxy: Proxy
) -> None:
    """It is sent again, as a batch is, and closes the stream once."""
    streams = open_streams(port=proxy.port)
    streams.open_writer(slot).append("a")
    lost = [proxy.cut_reply_to(b"/meta/"), proxy.cut_reply_to(b"/meta/", nth=2)]
    assert streams.close_stream(slot).closed == "CLOSED"
    assert [each.is_set() for each in lost] == [True, True]


def test_more_streams_than_the_cache_holds_still_flow(open_streams: OpenStreams) -> None:
    """A writer uses what it has obtained, whatever the others have pushed out of the cache."""
    streams = open_streams(cache_size=1)
    writers = [streams.write_to(uuid.uuid4().hex, create=True) for _ in range(40)]
    for number in range(20):
        for writer in writers:
            writer.write(number)
    assert [writer.wait(timeout=30).offset for writer in writers] == [20] * 40


class _Behind:
    """An authority on a host whose clock is an hour behind this one's; it mints for a minute."""

    def __init__(self, link: RedisLink, layout: Layout, settings: StreamsSettings) -> None:
        self._real = RedisAuthority(link, layout, settings)
        self.calls = 0

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        self.calls += 1
        minted = self._real.initialize(slot, content_type=content_type)
        return dataclasses.replace(minted, expires_at=time.time() - 3600 + 60)

    def revoke(self, slot: Slot) -> int:
        return self._real.revoke(slot)


def test_credentials_that_look_expired_on_arrival_are_used_once_each(
    open_streams: OpenStreams, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    """Two clocks meet in ``expires_at``. The store judges by its own; the operator is told."""
    streams = open_streams(authority=_Behind)
    authority: Any = streams.runtime.authority
    writer = streams.open_writer(slot)
    assert [writer.append(number) for number in range(3)] == [0, 1, 2]
    assert authority.calls == 3
    assert caplog.text.count("this host's clock") == 1
