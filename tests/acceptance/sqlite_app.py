"""An app whose chunks and credentials are in SQLite; runs are recorded in Redis all the same."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from celery_streams import StreamNotFound, Streams
from tests.acceptance.sqlite_streams import Database, SqliteAuthority, SqliteStore

app = Celery("sqlite")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
)
database = Database(os.environ.get("TEST_SQLITE", ":memory:"))
streams = Streams(app, store=SqliteStore(database), authority=SqliteAuthority(database))


@app.task(bind=True)
def count(self: Any, to: int, close: bool = False) -> int:
    """Write the numbers below ``to``; returns the offset of the last."""
    for number in range(to - 1):
        self.streams.write(number)
    last: int = self.streams.append(to - 1)
    if close:
        self.streams.close()
    return last


@app.task(bind=True, default_retry_delay=0)
def again(self: Any, to: int) -> int:
    """Write half, retry, and go on where the stream ends."""
    try:
        start = self.streams.head().end
    except StreamNotFound:
        start = 0
    stop = to if self.request.retries else to // 2
    for number in range(start, stop):
        self.streams.write(number)
    if stop < to:
        raise self.retry()
    return start


@app.task(bind=True)
def echo(self: Any, words: int) -> None:
    """Write a word for every one that a client writes to the key "said", then fail."""
    said = self.streams.read(key="said", timeout=20)
    with said:
        for _ in range(words):
            self.streams.write(next(said).upper())
    raise ValueError("as asked")
