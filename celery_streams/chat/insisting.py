"""Calls that a turn cannot do without: made again while the store is away."""

from __future__ import annotations

import logging
import time
from typing import TypeVar

from celery_streams.errors import StoreUnavailable
from celery_streams.redis.calls import Call
from celery_streams.redis.client import RedisLink
from celery_streams.settings import StreamsSettings
from celery_streams.writing.policy import pause_before

logger = logging.getLogger("celery_streams.chat")

T = TypeVar("T")


def insist(link: RedisLink, call: Call[T], settings: StreamsSettings) -> T:
    """The answer to ``call``, which the store must take twice for once.

    Raises:
        StoreUnavailable: the store has been away for ``retry_timeout``.
    """
    deadline = time.monotonic() + settings.retry_timeout
    failures = 0
    while True:
        try:
            return link.call(call)
        except StoreUnavailable as error:
            failures += 1
            if time.monotonic() >= deadline:
                raise
            if failures == 1:
                logger.warning("a chat turn waits for the store: %s", error)
            time.sleep(pause_before(failures))
