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
    # A message that dies with its process before the pool has noticed it comes back by itself.
    broker_transport_options={"visibility_timeout": 5},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)
streams = Streams(app)


@app.task(bind=True)
def count_on(self: Any, to: int, pace: float) -> int:
    """Write the numbers below ``to``, each with its attempt, continuing after what is durable.

    The last quarter comes at once, so that there is something to drain at the end.
    """
    attempt = self.streams.attempt
    try:
        start = self.streams.head().end
    except StreamNotFound:
        start = 0
    for number in range(start, to):
        self.streams.write({"number": number, "attempt": attempt})
        if number < to * 3 // 4:
            time.sleep(pace)
    return attempt
