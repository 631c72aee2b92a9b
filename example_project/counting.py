"""An authority that keeps count of itself: how the demo knows how often it was called.

Also an example of putting one's own control plane in place of the package's.
"""

from __future__ import annotations

import os
from typing import Any

import redis

from celery_streams import Authority, Credentials, Slot, StreamsSettings
from celery_streams.back_ends import AuthorityFactory
from celery_streams.contracts import JSON
from celery_streams.credentials.authority import RedisAuthority
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout

#: Set in the worker's environment to have initializations counted.
COUNT_VARIABLE = "EXAMPLE_COUNT_INITIALIZES"
_COUNTS = "example/initializes"


class CountingAuthority:
    """Counts, per slot and in Redis, so that a killed process's calls are not forgotten."""

    def __init__(self, authority: Authority, client: redis.Redis) -> None:
        self._authority = authority
        self._client = client

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """See :meth:`celery_streams.Authority.initialize`; counted before it is done."""
        self._client.hincrby(_COUNTS, str(slot), 1)
        return self._authority.initialize(slot, content_type=content_type)

    def revoke(self, slot: Slot) -> int:
        """See :meth:`celery_streams.Authority.revoke`."""
        return self._authority.revoke(slot)


def counting_authority() -> AuthorityFactory | None:
    """The counting authority's factory, or ``None`` where nobody wants to know."""
    return _counting if os.environ.get(COUNT_VARIABLE) else None


def initialize_counts(client: redis.Redis) -> dict[str, int]:
    """How often each slot was initialized, by everybody."""
    counts: dict[Any, Any] = client.hgetall(_COUNTS)
    return {slot.decode(): int(count) for slot, count in counts.items()}


def _counting(link: RedisLink, layout: Layout, settings: StreamsSettings) -> Authority:
    if not isinstance(link.client, redis.Redis):
        raise TypeError("the example counts on one server, not on a cluster")
    return CountingAuthority(RedisAuthority(link, layout, settings), link.client)
