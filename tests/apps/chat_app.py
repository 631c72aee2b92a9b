"""Chat agents that do what the message says, for the chat's tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

import redis
from celery import Celery, chord

from celery_streams import ChatAgent, StopRequested, Streams

app = Celery("chat")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)
streams = Streams(app)


def _gate() -> Any:
    """Where tests hold agents up, and see how far they are."""
    return redis.Redis.from_url(os.environ["TEST_BROKER_URL"])


def pass_gate(name: str, *, stopped: Any = bool) -> None:
    """Say that somebody is at the gate, and wait until the test opens it."""
    gate = _gate()
    gate.rpush(f"at:{name}", os.getpid())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not stopped():
        with suppress(redis.ConnectionError):
            if gate.lpop(f"open:{name}") is not None:
                return
        time.sleep(0.002)
    if not stopped():
        raise TimeoutError(f"the gate {name} stayed closed")


class Hooked(ChatAgent):
    """Notes its hooks."""

    abstract = True

    def _note(self, hook: str) -> None:
        _gate().rpush(f"hooks:{self.chat.session_id}", hook)

    def on_chat_start(self) -> None:
        self._note("chat-start")

    def on_turn_start(self) -> None:
        self._note("turn-start")

    def on_turn_complete(self) -> None:
        self._note("turn-complete")

    def on_error(self, error: Exception) -> None:
        self._note(f"error {error}")

    def save_messages(self, session_id: str, messages: list[Any]) -> None:
        self._note(f"save {len(messages)}")


@app.task(bind=True, base=Hooked)
def echo(self: Any, session_id: str) -> str:
    """Answer with the message, a word at a time; a word ``gate:x`` waits at the gate x."""
    for word in self.chat.text.split():
        if word == "retry-once":
            if self.chat.attempt == 1:
                raise self.retry(countdown=0)
        elif not _control(self.chat, word):
            _write(self.chat, word)
    return str(self.chat.turn_id)


def _control(chat: Any, word: str) -> bool:
    verb, _, argument = word.partition(":")
    match verb:
        case "gate":
            pass_gate(argument)
        case "until-stopped":
            pass_gate(chat.session_id, stopped=lambda: chat.stopped)
            raise StopRequested("noticed")
        case "silent":
            chat.pipe(_silence(argument))
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("a secret")
        case "look":
            for _ in range(int(argument)):
                assert not chat.stopped
        case "alone":
            _be_alone(chat, float(argument))
        case _:
            return False
    return True


async def _silence(gate: str) -> Any:
    """A model that says one word, and then nothing."""
    yield "word "
    _gate().rpush(f"at:{gate}", os.getpid())
    try:
        await asyncio.Event().wait()
    finally:
        _gate().rpush(f"at:{gate}-closed", os.getpid())


def _be_alone(chat: Any, seconds: float) -> None:
    """Say who is in a turn, and for how long."""
    me = f"{chat.turn_id} {chat.attempt}"
    _gate().rpush(f"turns:{chat.session_id}", f"enter {me}")
    time.sleep(seconds)
    _gate().rpush(f"turns:{chat.session_id}", f"leave {me}")


def _write(chat: Any, word: str) -> None:
    response = chat.response
    match word:
        case "pending":
            for message in chat.inbox.pending():
                response.text(f"[{message['parts'][0]['text']}]")
        case "tool":
            response.tool_output(response.tool_input("clock", {"zone": "UTC"}), "noon")
        case "client-tool":
            response.tool_input("ask", {"question": "colour?"}, call_id="ask-1")
        case "count":
            response.text(f"{len(chat.messages)} ")
        case "raw":
            chat.stream.write({"mine": True})
        case "subtask":
            helper.delay("from a helper").get(disable_sync_subtasks=False)
        case "subtasks":
            each = [helper.si(f"chained {number}") for number in (1, 2)]
            chord(each)(manager.si("deep")).get(disable_sync_subtasks=False)
        case "step":
            response.write({"type": "start-step"})
        case _:
            response.text(f"{word} ")


@app.task(bind=True, base=ChatAgent, fold_steps=False)
def scripted(self: Any, session_id: str) -> None:
    """Write the chunks in the request's ``script``; ``{"gate": "x"}`` waits at the gate x, and
    ``{"pending": true}`` reads the inbox.

    Then the first of ``repeat`` as often as the second says.
    """
    for step in self.chat.body["script"]:
        if "gate" in step:
            pass_gate(step["gate"], stopped=lambda: self.chat.stopped)
        elif "pending" in step:
            self.chat.inbox.pending()
        elif "raise" in step:
            raise ValueError(step["raise"])
        else:
            self.chat.response.write(step)
    chunk, times = self.chat.body.get("repeat", (None, 0))
    for _ in range(times):
        self.chat.response.write(chunk)


class Keeping(ChatAgent):
    """Keeps its history where a user's database would be. ``body`` says which hook fails."""

    abstract = True

    def _read(self, name: str) -> Any:
        if self.chat.body.get("fails") == name:
            raise ConnectionError(f"a secret of {name}")
        kept = _gate().get(f"{name}:{self.chat.session_id}")
        return None if kept is None else json.loads(kept)

    def load_messages(self, session_id: str) -> Any:
        return self._read("messages")

    def save_messages(self, session_id: str, messages: list[Any]) -> None:
        if self.chat.body.get("fails") == "save":
            raise ConnectionError("a secret of save")
        _gate().set(f"messages:{session_id}", json.dumps(messages))
        if gate := self.chat.body.get("saved"):
            pass_gate(gate)

    def on_turn_start(self) -> None:
        self._fail("start")

    def on_turn_complete(self) -> None:
        self._fail("complete")

    def on_error(self, error: Exception) -> None:
        self._fail("error")

    def _fail(self, name: str) -> None:
        if name in self.chat.body.get("fails", "").split():
            raise ConnectionError(f"a secret of {name}")

    def load_branch(self, session_id: str, branch_id: str) -> Any:
        return self._read(f"branch:{branch_id}")

    def save_branch(self, session_id: str, branch_id: str, messages: list[Any]) -> None:
        _gate().set(f"branch:{branch_id}:{session_id}", json.dumps(messages))


@app.task(bind=True, base=Keeping)
def keeper(self: Any, session_id: str) -> None:
    """Answer like ``echo``."""
    for word in self.chat.text.split():
        if not _control(self.chat, word):
            _write(self.chat, word)


@app.task(bind=True, base=ChatAgent, raise_on_stop=True)
def stubborn(self: Any, session_id: str, message: Any) -> None:
    """Write until a write refuses."""
    assert message == self.chat.message
    while True:
        self.chat.response.text("x")
        time.sleep(0.002)


@app.task(bind=True, base=ChatAgent)
def spoken(self: Any, session_id: str, message: Any = None) -> None:
    """Called directly, with the message."""
    self.chat.response.text(f"heard {self.chat.text}")


@app.task(bind=True, base=ChatAgent, session_argument="room")
def renamed(self: Any, room: str) -> None:
    """Say where it is."""
    assert room == self.chat.session_id
    self.chat.response.text(f"{self.chat.text} in {room}")


@app.task(bind=True, base=ChatAgent, time_limit=1)
def slow(self: Any, session_id: str) -> None:
    """Write something, and take longer than allowed."""
    self.chat.response.text("partial")
    pass_gate(session_id)


@app.task(bind=True)
def manager(self: Any, text: str) -> None:
    """A sub-agent that has one of its own."""
    helper.delay(text).get(disable_sync_subtasks=False)


@app.task(bind=True)
def helper(self: Any, text: str) -> None:
    """A sub-agent: tells the page something."""
    self.streams.append({"type": "data-note", "data": text}, target="session")
