"""Tasks that merge async sources."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from celery import Celery

from celery_streams import Streams

app = Celery("greenlets")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
)
streams = Streams(app)


@app.task(bind=True)
def merge(self: Any, count: int, pause: float) -> int:
    """Merge the numbers below ``count``, ``pause`` seconds apart."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(count):
            yield number
            await asyncio.sleep(pause)

    with self.streams.writer() as writer:
        return int(writer.merge(numbers()))
