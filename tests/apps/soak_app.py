"""Tasks whose worker processes are killed while they write."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from celery_streams import StreamNotFound, Streams

app = Celery("soak")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)
streams = Streams(app)


@app.task(bind=True)
def count_on(self: Any, to: int, pace: float) -> int:
    """Write the numbers below ``to``, each with its attempt, continuing after what is durable."""
    attempt = self.streams.attempt
    try:
        start = self.streams.head().end
    except StreamNotFound:
        start = 0
    for number in range(start, to):
        self.streams.write({"number": number, "attempt": attempt})
        time.sleep(pace)
    return attempt
