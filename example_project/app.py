"""The Celery app of the example, with its streams.

Addresses come from ``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND`` and
``CELERY_STREAMS_URL``. What is not set is a database of one embedded Valkey, so that
``celery -A example_project.app worker`` runs on a machine that has no Redis.
"""

from __future__ import annotations

import os

from celery import Celery

from celery_streams import Streams
from celery_streams.embedded import resolve
from example_project.counting import counting_authority

#: The embedded server's directory, as an ``embedded://`` URL.
SERVER_VARIABLE = "EXAMPLE_SERVER"


def _address(variable: str, database: int) -> str:
    """The environment's address, or a database of the embedded server."""
    if given := os.environ.get(variable):
        return given
    server = resolve(os.environ.get(SERVER_VARIABLE, "embedded://"))
    return f"{server.rpartition('/')[0]}/{database}"


app = Celery(
    "example",
    broker=_address("CELERY_BROKER_URL", 1),
    backend=_address("CELERY_RESULT_BACKEND", 2),
    include=["example_project.tasks"],
)
app.conf.update(
    # A lost worker's message comes back after this many seconds (Redis as the broker), so it
    # must be longer than the longest task.
    broker_transport_options={"visibility_timeout": 300},
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    task_track_started=True,
    worker_lost_wait=1.0,
    worker_prefetch_multiplier=1,
)

streams = Streams(app, url=_address("CELERY_STREAMS_URL", 0), authority=counting_authority())
