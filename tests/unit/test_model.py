"""The example's model client against a real HTTP server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from example_project import model

PIECES = ["A ", "Python ", "dict, ", "\u00fcber."]


class Completions(ThreadingHTTPServer):
    """An OpenAI-compatible server; ``behaviour`` says how its next answers go."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = "complete"
        self.after_that: str | None = None
        self.pieces = PIECES
        #: Cleared, answers stop after their pieces, and do not end before it is set.
        self.may_end = threading.Event()
        self.may_end.set()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Completions

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that went away
            super().handle()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **body})
        self.server.authorizations.append(self.headers.get("Authorization"))
        if self.server.behaviour == "busy":
            self.send_error(429, "slow down")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        self.wfile.write(b": a comment\n\n")
        for piece in self.server.pieces:
            self.event({"choices": [{"delta": {"content": piece}}]})
        if not self.server.may_end.wait(60):
            return
        behaviour = self.server.behaviour
        self.server.behaviour = self.server.after_that or behaviour
        if behaviour == "error":
            self.event({"error": {"message": "overloaded"}})
        if behaviour == "garbage":
            self.wfile.write(b"data: {not json\n\n")
        if behaviour == "complete":
            self.event({"choices": [], "usage": {"total_tokens": 9}})
            self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """A test's output is its own."""


@contextmanager
def completions_server() -> Iterator[Completions]:
    """A running server."""
    server = Completions()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.may_end.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def completions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Completions]:
    """A running server that the environment names."""
    with completions_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        monkeypatch.setenv("OPENAI_MODEL", "tiny")
        yield server


def test_pieces_come_as_the_model_sends_them(completions: Completions) -> None:
    """Text deltas only, in order; the request names model, question and key."""
    assert list(model.stream("what is a dict?")) == PIECES
    (request,) = completions.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["stream"]) == ("tiny", True)
    assert request["messages"][-1] == {"role": "user", "content": "what is a dict?"}
    assert completions.authorizations == ["Bearer sk-secret"]


def test_a_later_attempt_asks_the_model_to_go_on(completions: Completions) -> None:
    """What is already delivered is sent along, so that the model continues it."""
    list(model.stream("what is a dict?", "A Python "))
    roles = [message["role"] for message in completions.requests[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert completions.requests[0]["messages"][2]["content"] == "A Python "


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("busy", "answered 429"),
        ("error", "overloaded"),
        ("cut", "ended before it was complete"),
        ("garbage", "failed"),
    ],
)
def test_an_answer_that_is_not_complete_is_an_error(
    completions: Completions, behaviour: str, told: str
) -> None:
    """Refused, broken off or garbled: a ``ModelError`` that says so, without the key."""
    completions.behaviour = behaviour
    with pytest.raises(model.ModelError, match=told) as raised:
        list(model.stream("what is a dict?"))
    assert "sk-secret" not in str(raised.value)


def test_no_server_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, or the URL is none: the task can retry, the worker lives."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(model.ModelError, match="failed"):
        list(model.stream("anything"))
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc")
    with pytest.raises(model.ModelError, match="http"):
        list(model.stream("anything"))


def test_without_a_url_or_key_there_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example then answers from Python's own documentation."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert not model.configured()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert model.configured()
