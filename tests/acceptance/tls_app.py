"""An app that says where Redis is in Celery's settings only, with their TLS options."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from celery_streams import Streams

os.environ.pop("CELERY_STREAMS_URL", None)
app = Celery("tls")
app.conf.update(
    broker_connection_retry_on_startup=True, **json.loads(os.environ.get("TEST_CELERY_CONF", "{}"))
)
streams = Streams(app)


@app.task(bind=True)
def count(self: Any, to: int) -> int:
    """Write the numbers below ``to``."""
    for number in range(to):
        self.streams.write(number)
    return to
