"""The tasks of the lifecycle app, and some that go on only when a test lets them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from celery_streams import StreamNotFound, WriteTimeout
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


@app.task(bind=True, name=f"{_NAMES}.leaves_a_thread")
def leaves_a_thread(self: Any, folder: str, opened: bool) -> str:
    """Be done while a thread still has the task's streams; it writes once ``go`` is there."""
    mine, place = self.streams, Path(folder)
    if opened:
        mine.write("from the task")

    def late() -> None:
        while not (place / "go").exists():
            time.sleep(0.005)
        try:
            mine.write("from the thread")
            outcome = "accepted"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        (place / "part").write_text(outcome)
        (place / "part").rename(place / "outcome")

    threading.Thread(target=late, daemon=True).start()
    return "done"


@app.task(bind=True, name=f"{_NAMES}.retries_unheard", max_retries=1)
def retries_unheard(self: Any, told: bool) -> str:
    """Write while the store is away, then retry: knowing of it, or not."""
    if self.request.retries:
        return "done"
    self.streams.write(0)
    if told:
        try:
            self.streams.flush(timeout=0.5)
        except WriteTimeout as error:
            raise self.retry(countdown=0.1) from error
    raise self.retry(countdown=0.1)
