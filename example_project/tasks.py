"""The assistant's tasks: an answer that survives its worker, and the same as a chat agent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from celery_streams import ChatAgent, StreamNotFound
from example_project import documentation, model, tokens
from example_project.app import app

#: A progress chunk is written after this many tokens.
_PROGRESS_EVERY = 8


@app.task(
    bind=True,
    acks_late=True,  # a worker that dies has not acknowledged: the message comes back
    reject_on_worker_lost=True,
    autoretry_for=(model.ModelError,),
    retry_backoff=1,
    retry_backoff_max=10,
    max_retries=3,
)
def answer(self: Any, question: str, tokens_per_second: float | None = None) -> dict[str, Any]:
    """Answer a question: tokens on ``default``, ``{"done": n, "of": m}`` on ``progress``.

    A retried or redelivered attempt goes on after what its predecessor has made durable, so
    readers see one answer, whatever happened to the workers.
    """
    delivered = _delivered(self)
    done = len(delivered)
    pieces, total = _pieces(question, delivered, tokens_per_second)
    for piece in pieces:
        self.streams.write(piece)
        delivered.append(piece)
        done += 1
        if done % _PROGRESS_EVERY == 0:
            self.streams.write({"done": done, "of": max(total, done)}, key="progress")
    self.streams.write({"done": done, "of": done}, key="progress")
    return {"chunks": done, "text": "".join(delivered)}


@app.task(bind=True, base=ChatAgent)
def agent(
    self: Any, session_id: str, message: str, tokens_per_second: float | None = None
) -> dict[str, Any]:
    """The same as a chat agent: AI SDK UI message parts, on the session's ``out`` stream."""
    write = self.chat.response.write
    text_id = "text-1"
    count = 0
    write({"type": "start", "messageId": self.request.id})
    write({"type": "text-start", "id": text_id})
    pieces, _ = _pieces(message, [], tokens_per_second)
    for piece in pieces:
        write({"type": "text-delta", "id": text_id, "delta": piece})
        count += 1
    write({"type": "text-end", "id": text_id})
    write({"type": "finish"})
    return {"session_id": session_id, "deltas": count}


@app.task(bind=True)
def probe(self: Any, count: int, interval: float) -> int:
    """Write ``count`` times what time it is (monotonic, ns): for a reader on the same host."""
    for _ in range(count):
        self.streams.write(time.monotonic_ns())
        time.sleep(interval)
    return count


def _delivered(task: Any) -> list[str]:
    """The chunks an earlier attempt of this run has made durable.

    ``attempt`` comes first: from then on the earlier attempt, should it still live, can write
    no more, and the end of the stream stands still.
    """
    if task.streams.attempt == 1:
        return []
    try:
        end = task.streams.head().end
    except StreamNotFound:
        return []  # it died before its first chunk
    return list(itertools.islice(task.streams.read(timeout=10), end)) if end else []


def _pieces(
    question: str, delivered: list[str], tokens_per_second: float | None
) -> tuple[Iterator[str], int]:
    """What is still to be said, and how many pieces it will be in all as far as is known."""
    if model.configured():
        return model.stream(question, "".join(delivered)), 0
    pieces = tokens.split(documentation.answer(question))
    return tokens.paced(pieces[len(delivered) :], tokens_per_second), len(pieces)
