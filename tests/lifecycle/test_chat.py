"""Chat-agent tasks: sessions that outlive runs, and the warning about run-scoped streams."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from celery_streams import ConfigurationError, Slot, StreamClosed
from tests.lifecycle.client import APP, Client, chunks_of

_WARNING = "was called in the chat-agent task"


def _words(chunks: list[Any]) -> list[str]:
    """What the task has written, without what the runtime adds."""
    texts = [c["delta"] if isinstance(c, dict) and "delta" in c else c for c in chunks]
    return [text for text in texts if isinstance(text, str)]


def test_several_runs_answer_in_one_session(prefork: Client) -> None:
    """A session's stream stays open between runs, and has their answers one after the other."""
    session = uuid.uuid4().hex
    out = prefork.streams.session(session).out
    for turn in range(3):
        prefork.run("agent", session, [f"{turn}a", f"{turn}b"])
        assert out.head().closed is None
    chunks = chunks_of(prefork.streams, Slot.session(session))
    turn_of = ["start", "start-step", "text-start", *["text-delta"] * 2, "text-end", "finish"]
    assert [chunk["type"] for chunk in chunks] == turn_of * 3
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta"]
    assert deltas == [f"{turn}{word}" for turn in range(3) for word in "ab"]
    with out.read(timeout=5) as reader:
        assert [next(reader) for _ in chunks] == chunks


def test_every_way_of_writing_to_a_session_keeps_one_order(prefork: Client, eager: Any) -> None:
    """append, writer, pipe, write and response.write share the session's buffer."""
    words = ["append", "writer", "pipe", "write", "response"]
    session = uuid.uuid4().hex
    arguments = {"chat_id": session, "words": words}
    result = prefork.app.send_task(f"{APP}.unbound_agent", kwargs=arguments)
    assert result.get(timeout=30) == session
    assert _words(chunks_of(prefork.streams, Slot.session(session))) == words
    eager.unbound_agent(session, words)
    assert _words(chunks_of(prefork.streams, Slot.session(session))) == words * 2


def test_a_session_is_reached_from_outside_in_both_directions(prefork: Client) -> None:
    """The front end writes to the inbox and reads out; closing a channel is for good."""
    session = prefork.streams.session(uuid.uuid4().hex)
    assert [session.inbox.append({"text": n}) for n in range(3)] == [0, 1, 2]
    with session.inbox.writer() as writer:
        writer.write({"text": 3})
    with session.inbox.read(offset=2, timeout=5) as reader:
        assert [next(reader)["text"], next(reader)["text"]] == [2, 3]
    assert session.inbox.close().closed == "CLOSED"
    with pytest.raises(StreamClosed, match="has ended"):
        session.inbox.append("too late")
    prefork.run("agent", session.session_id, ["still open"])
    assert list(session.inbox.read(timeout=5)) == [{"text": n} for n in range(4)]


@pytest.mark.parametrize("call", ["write", "writer", "pipe", "append", "read"])
def test_a_chat_agent_that_uses_run_scoped_streams_is_warned_once(
    prefork: Client, call: str
) -> None:
    """One warning a run, also over a retry; it names what to use, and works as asked."""
    start = len(prefork.worker.log.text)
    run_id, _ = prefork.run("agent", uuid.uuid4().hex, ["hi"], [call, call, "retry", call])
    if call != "read":
        prefork.end(run_id)
        assert prefork.chunks(run_id) == ["x"] * 5
    log = prefork.worker.log.wait_for(run_id, after=start)[start:]
    assert log.count(_WARNING) == 1
    assert f"streams.{call}() {_WARNING} {APP}.agent[{run_id}]" in log
    assert "chat.response.write()" in log
    assert "chat.stream.*" in log


def test_the_app_s_own_read_is_warned_of_too(
    prefork: Client, eager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """``streams.read`` of the module means the same inside a chat-agent task."""
    eager.agent.apply((uuid.uuid4().hex, [], ["append", "read", "long"]))
    assert caplog.text.count(_WARNING) == 1


def test_a_chat_agent_s_subtasks_are_not_warned(prefork: Client) -> None:
    """Run-scoped streams are what a subtask is for: its own message, its own run."""
    start = len(prefork.worker.log.text)
    result = prefork.send("agent", uuid.uuid4().hex, ["hi"], ["subtask"])
    result.get(timeout=30)
    (subtask,) = result.children
    assert subtask.get(timeout=30) == 1
    assert prefork.end(subtask.id) == "SUCCESS"
    assert prefork.chunks(subtask.id) == [[subtask.id, 0]]
    log = prefork.worker.log.wait_for(f"[{subtask.id}] succeeded", after=start)[start:]
    assert _WARNING not in log


def test_a_chat_agent_without_a_session_id_says_what_it_needs(eager: Any) -> None:
    """No argument of that name, or not a string."""
    cases: list[dict[str, Any]] = [
        {"session_id": 7, "words": []},
        {"session_id": None, "words": []},
    ]
    for arguments in cases:
        result = eager.agent.apply(kwargs=arguments)
        with pytest.raises(ConfigurationError, match=r"'session_id'.*session_argument"):
            result.get()
