"""Tasks that hang, and are delivered again meanwhile."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from celery_streams import Streams

app = Celery("deliveries")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
streams = Streams(app)


@app.task(bind=True, acks_late=True)
def hang(self: Any) -> None:
    """Say which process this is, and hang."""
    self.streams.append(os.getpid())
    time.sleep(60)
