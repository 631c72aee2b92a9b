"""A Celery app without streams: what the worker helper and the smoke nodes are tried on."""

from __future__ import annotations

import os
import signal

from celery import Celery

app = Celery("plain")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
)


@app.task
def add(x: int, y: int) -> int:
    """The sum."""
    return x + y


@app.task
def pid() -> int:
    """Where this runs."""
    return os.getpid()


@app.task
def kill_itself() -> None:
    """End the process that runs this, as the kernel would when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
