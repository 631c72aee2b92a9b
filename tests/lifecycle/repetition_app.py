"""Tasks whose message is delivered again after they have ended."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from celery_streams import Streams

app = Celery("repetitions")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
)
streams = Streams(app)


@app.task(bind=True, acks_late=True)
def count(self: Any, to: int) -> str:
    """Write the numbers below ``to``."""
    for number in range(to):
        self.streams.write(number)
    return f"counted to {to}"


@app.task(bind=True, acks_late=True)
def everything(self: Any, elsewhere: str) -> dict[str, Any]:
    """Use a run's streams in every way; returns what came of it."""
    told: dict[str, Any] = {"append": self.streams.append("a")}
    with self.streams.writer() as writer:
        writer.write("b")
        told["merge"] = writer.merge(["c"])
        told["flush"] = writer.flush()
    told["wait"] = [writer.wait().offset, writer.wait().count]
    told["pipe"] = list(self.streams.pipe(["d"]))
    self.streams.write("e", target=elsewhere)
    self.streams.flush()
    told["attempt"] = self.streams.attempt
    told["head"] = self.streams.head().end
    told["close"] = [self.streams.close(key).end for key in ("default", "other")]
    return told


@app.task(bind=True, acks_late=True, default_retry_delay=0)
def retrying(self: Any) -> str:
    """Write, retry once, write again."""
    self.streams.write(self.request.retries)
    if not self.request.retries:
        raise self.retry()
    return "retried"


@app.task(bind=True, default_retry_delay=0)
def waiting(self: Any, elsewhere: str) -> None:
    """Retry; then write to another run only, and retry much later."""
    if self.request.retries:
        self.streams.write("waiting", target=elsewhere)
        raise self.retry(countdown=600)
    raise self.retry()


@app.task(bind=True, acks_late=True)
def failing(self: Any) -> None:
    """Write, then fail."""
    self.streams.write("before")
    raise ValueError("as asked")
