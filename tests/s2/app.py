"""An app whose chunks are in S2; runs, locks and cached credentials are in Redis."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from celery_streams import Streams

app = Celery("s2")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
)
streams = Streams(app)


@app.task(bind=True)
def count(self: Any, to: int) -> int:
    """Write the numbers below ``to``; returns the process that did."""
    for number in range(to):
        self.streams.write(number)
    return os.getpid()


@app.task(bind=True)
def write_to(self: Any, run_id: str, name: int, to: int) -> None:
    """Write to the stream of a run that nobody has heard of yet."""
    with streams.write_to(run_id, create=True) as writer:
        for number in range(to):
            writer.write([name, number])


@app.task(bind=True, default_retry_delay=0)
def again(self: Any, to: int) -> int:
    """Write half, retry, and write the other half."""
    start = to // 2 if self.request.retries else 0
    for number in range(start, start + to // 2):
        self.streams.write(number)
    if not self.request.retries:
        raise self.retry()
    return start
