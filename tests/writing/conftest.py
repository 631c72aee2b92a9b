"""Streams without a Celery app, straight or through a proxy."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_streams import Slot, Streams
from tests.servers import Proxy, ValkeyProcess

OpenStreams = Callable[..., Streams]


@pytest.fixture
def open_streams(valkey: ValkeyProcess) -> Iterator[OpenStreams]:
    """``open_streams(port=..., **settings)``: as many as a test likes, closed after it."""
    opened: list[Streams] = []

    def open_(*, port: int | None = None, url: str | None = None, **settings: Any) -> Streams:
        streams = Streams(url=url or valkey.url_for(port=port), secret="test secret", **settings)
        opened.append(streams)
        return streams

    yield open_
    for streams in opened:
        # Tests leave writers with chunks that can never be sent.
        if streams._runtime is not None:
            streams._runtime.link.close()


@pytest.fixture
def proxy(valkey: ValkeyProcess) -> Iterator[Proxy]:
    """A proxy in front of the shared server."""
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def slot() -> Slot:
    """A stream nobody has used."""
    return Slot.run(uuid.uuid4().hex)
