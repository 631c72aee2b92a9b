"""The smallest app that streams, against the public API only."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from celery_streams import Streams

app = Celery("smoke")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
)
streams = Streams(app)


@app.task(bind=True)
def count(self: Any, to: int) -> int:
    """Write the numbers below ``to``, and how far it is to a second stream."""
    for number in range(to):
        self.streams.write(number)
    self.streams.write({"done": to}, key="progress")
    return to


@app.task
def add(x: int, y: int) -> int:
    """The sum; writes nothing."""
    return x + y
