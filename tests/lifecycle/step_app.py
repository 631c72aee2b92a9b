"""The tasks of the lifecycle app, and some that go on only when a test lets them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery_streams import StreamNotFound
from tests.apps.lifecycle_app import app

_NAMES = "tests.apps.lifecycle_app"  # those that tests.lifecycle.client sends


@app.task(bind=True, name=f"{_NAMES}.in_step")
def in_step(self: Any, folder: str, to: int) -> int:
    """Write the numbers below ``to``, each when ``folder`` has a file named as the one before."""
    for number in range(to):
        self.streams.write(number)
        while not Path(folder, str(number)).exists():
            time.sleep(0.005)
    return to


@app.task(bind=True, name=f"{_NAMES}.resuming", acks_late=True, reject_on_worker_lost=True)
def resuming(self: Any, to: int) -> int:
    """Go on where the stream ends; the first attempt is killed in the middle of a hot loop.

    A quarter is durable then, for certain, and half is written.
    """
    attempt = self.streams.attempt
    try:
        start = self.streams.head().end
    except StreamNotFound:
        start = 0
    for number in range(start, to):
        if attempt == 1 and number == to // 4:
            self.streams.flush()
        if attempt == 1 and number == to // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.streams.write([attempt, number])
    return start


@app.task(bind=True, name=f"{_NAMES}.several")
def several(self: Any, path: str, keys: list[str]) -> None:
    """Write a chunk to each stream, then wait until a file appears."""
    for key in keys:
        self.streams.append(os.getpid(), key=key)
    while not Path(path).exists():
        time.sleep(0.01)
