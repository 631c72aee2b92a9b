"""The assistant's tasks: an answer that survives its worker, and the same as a chat agent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

from celery_streams import ChatAgent, StreamNotFound
from example_project import documentation, model, tokens
from example_project.app import app

#: A progress chunk is written after this many tokens.
PROGRESS_EVERY = 8


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
    continued_at = len(delivered)
    progress = Progress(self)
    pieces, total = _pieces(question, delivered, tokens_per_second)
    for piece in pieces:
        self.streams.write(piece)
        delivered.append(piece)
        progress.report(len(delivered), total)
    progress.finish(len(delivered))
    return {
        "chunks": len(delivered),
        "text": "".join(delivered),
        "attempt": self.streams.attempt,
        "continued_at": continued_at,
    }


class Progress:
    """``{"done": n, "of": m}`` every ``PROGRESS_EVERY`` tokens, over all attempts."""

    def __init__(self, task: Any) -> None:
        self._streams = task.streams
        last = _last(task, "progress") if task.streams.attempt > 1 else None
        self._reported = 0 if last is None else int(last["done"])

    def report(self, done: int, total: int) -> None:
        """``done`` tokens are written, of ``total`` (or more, if nobody knows)."""
        while self._reported + PROGRESS_EVERY <= done:
            self._reported += PROGRESS_EVERY
            self._write(self._reported, max(total, done))

    def finish(self, done: int) -> None:
        """All ``done`` tokens are written."""
        if self._reported != done or done == 0:
            self._write(done, done)

    def _write(self, done: int, of: int) -> None:
        self._streams.write({"done": done, "of": of}, key="progress")


def expected_progress(total: int) -> list[dict[str, int]]:
    """The progress stream of an answer of ``total`` tokens, whatever happened on the way."""
    steps = [*range(PROGRESS_EVERY, total + 1, PROGRESS_EVERY)]
    if not steps or steps[-1] != total:
        steps.append(total)
    return [{"done": step, "of": total} for step in steps]


@app.task(bind=True, base=ChatAgent)
def agent(
    self: Any,
    session_id: str,
    message: str | dict[str, Any],
    tokens_per_second: float | None = None,
) -> dict[str, Any]:
    """The same as a chat agent: AI SDK UI message parts, on the session's ``out`` stream."""
    write = self.chat.response.write
    text_id = "text-1"
    text = ""
    write({"type": "text-start", "id": text_id})
    pieces, _ = _pieces(self.chat.text, [], tokens_per_second)
    for piece in pieces:
        write({"type": "text-delta", "id": text_id, "delta": piece})
        text += piece
    write({"type": "text-end", "id": text_id})
    answer_id = self.chat.response.message["id"]
    return {"session_id": session_id, "text": text, "message_id": answer_id}


@app.task(bind=True, base=ChatAgent, raise_on_stop=True)
def assistant(self: Any, session_id: str) -> None:
    """What ``make demo-chat`` talks to: a tool call, the answer's text, and its progress."""
    response, question = self.chat.response, self.chat.text
    call = response.tool_input("look_up", {"question": question})
    try:
        topic = documentation.topic_of(question)
    except documentation.UnknownTopic as unknown:
        response.tool_output(call, {"found": None, "similar": unknown.close})
    else:
        response.tool_output(call, {"found": topic.name})
    pieces, total = _pieces(question, [], None, _said(self.chat.messages[:-1]))
    progress = {"done": 0, "of": total}
    response.data("progress", progress, part_id="progress")
    # An id of our own: the convenience methods begin another text after each other part.
    response.write({"type": "text-start", "id": "answer"})
    for done, piece in enumerate(pieces, 1):
        response.write({"type": "text-delta", "id": "answer", "delta": piece})
        progress = {"done": done, "of": max(total, done)}
        if done % PROGRESS_EVERY == 0:
            response.data("progress", progress, part_id="progress")
    response.write({"type": "text-end", "id": "answer"})
    response.data("progress", {**progress, "of": progress["done"]}, part_id="progress")


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
    end = _end(task, "default")
    return list(itertools.islice(task.streams.read(timeout=10), end)) if end else []


def _last(task: Any, key: str) -> Any:
    """The last durable chunk of one of the run's streams; ``None`` if it has none."""
    if not _end(task, key):
        return None
    return next(iter(task.streams.read(key=key, offset=-1, timeout=10)))


def _end(task: Any, key: str) -> int:
    try:
        return int(task.streams.head(key).end)
    except StreamNotFound:
        return 0  # the earlier attempt died before its first chunk


def _pieces(
    question: str,
    delivered: list[str],
    tokens_per_second: float | None,
    before: Iterable[tuple[str, str]] = (),
) -> tuple[Iterator[str], int]:
    """What is still to be said, and how many pieces it will be in all as far as is known."""
    if model.configured():
        return model.stream(question, "".join(delivered), before), 0
    pieces = tokens.split(documentation.answer(question))
    return tokens.paced(pieces[len(delivered) :], tokens_per_second), len(pieces)


def _said(messages: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The roles and texts of UI messages."""
    for message in messages:
        texts = [part["text"] for part in message["parts"] if part["type"] == "text"]
        if texts:
            yield message["role"], "".join(texts)
