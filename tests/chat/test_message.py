"""Chunks, checked, and the message they make: as the AI SDK (7) makes it of the same chunks."""

from __future__ import annotations

from typing import Any

import pytest

from celery_streams import InvalidChunk
from celery_streams.chat.chunks import ADAPTER, MODELS, ToolOutputAvailable, parse_chunk
from celery_streams.chat.history import asked
from celery_streams.chat.message import ResponseMessage
from celery_streams.chat.requests import Request

PROVIDER = {"providerMetadata": {"p": {"k": 1}}}
TOOL = {"type": "tool-input-available", "toolName": "x"}

#: Every type of chunk, and what ``readUIMessageStream`` of the npm package makes of them.
CHUNKS: list[dict[str, Any]] = [
    {"type": "start", "messageId": "m", "messageMetadata": {"a": {"b": 1}}},
    {"type": "start-step"},
    {"type": "text-start", "id": "1", **PROVIDER},
    {"type": "text-delta", "id": "1", "delta": "he"},
    {"type": "text-delta", "id": "1", "delta": "y"},
    {"type": "text-end", "id": "1"},
    {"type": "reasoning-start", "id": "r"},
    {"type": "reasoning-delta", "id": "r", "delta": "hm"},
    {"type": "reasoning-end", "id": "r", **PROVIDER},
    {"type": "tool-input-start", "toolCallId": "t1", "toolName": "x", "title": "T"},
    {"type": "tool-input-delta", "toolCallId": "t1", "inputTextDelta": '{"a":[1'},
    {**TOOL, "toolCallId": "t1", "input": {"a": [1, 2]}, **PROVIDER},
    {"type": "tool-output-available", "toolCallId": "t1", "output": 1, "preliminary": True},
    {"type": "tool-output-available", "toolCallId": "t1", "output": None, **PROVIDER},
    {**TOOL, "toolCallId": "t2", "input": None, "dynamic": True},
    {"type": "tool-output-error", "toolCallId": "t2", "errorText": "bad", "dynamic": True},
    {"type": "tool-input-error", "toolCallId": "t3", "toolName": "x", "input": "{",
     "errorText": "no json"},
    {**TOOL, "toolCallId": "t4", "input": {}, "providerExecuted": True},
    {"type": "tool-approval-request", "toolCallId": "t4", "approvalId": "a", "signature": "s"},
    {"type": "tool-approval-response", "approvalId": "a", "approved": False, "reason": "no"},
    {"type": "tool-output-denied", "toolCallId": "t4"},
    {"type": "tool-input-start", "toolCallId": "t5", "toolName": "x"},
    {"type": "tool-input-delta", "toolCallId": "t5", "inputTextDelta": '{"q": "par'},
    {"type": "source-url", "sourceId": "s", "url": "u", "title": "t"},
    {"type": "source-document", "sourceId": "d", "mediaType": "text/plain", "title": "t"},
    {"type": "file", "url": "u", "mediaType": "image/png"},
    {"type": "reasoning-file", "url": "u", "mediaType": "image/png"},
    {"type": "custom", "kind": "a.b", **PROVIDER},
    {"type": "steering-message", "id": "u", "parts": [{"type": "text", "text": "wait"}]},
    {"type": "data-x", "id": "1", "data": 1},
    {"type": "data-x", "id": "1", "data": {"n": 2}},
    {"type": "data-x", "data": None},
    {"type": "data-y", "data": 5, "transient": True},
    {"type": "finish-step"},
    {"type": "start-step"},
    {"type": "text-start", "id": "1"},
    {"type": "text-delta", "id": "1", "delta": "gone"},
    {"type": "reset-step"},
    {"type": "text-start", "id": "1"},
    {"type": "text-delta", "id": "1", "delta": "kept"},
    {"type": "message-metadata", "messageMetadata": {"a": {"c": 2}}},
    {"type": "error", "errorText": "e"},
    {"type": "abort", "reason": "r"},
    {"type": "finish", "finishReason": "stop", "messageMetadata": {"z": 1}},
]  # fmt: skip

CALLED = {"callProviderMetadata": PROVIDER["providerMetadata"]}
RESULT = {"resultProviderMetadata": PROVIDER["providerMetadata"]}
PARTS: list[dict[str, Any]] = [
    {"type": "step-start"},
    {"type": "text", "text": "hey", "state": "done", **PROVIDER},
    {"type": "reasoning", "id": "r", "text": "hm", "state": "done", **PROVIDER},
    {"type": "tool-x", "toolCallId": "t1", "title": "T", "state": "output-available",
     "input": {"a": [1, 2]}, "output": None, **CALLED, **RESULT},
    {"type": "dynamic-tool", "toolName": "x", "toolCallId": "t2", "state": "output-error",
     "input": None, "errorText": "bad"},
    {"type": "tool-x", "toolCallId": "t3", "state": "output-error", "input": "{",
     "errorText": "no json"},
    {"type": "tool-x", "toolCallId": "t4", "state": "output-denied", "input": {},
     "providerExecuted": True,
     "approval": {"id": "a", "signature": "s", "approved": False, "reason": "no"}},
    {"type": "tool-x", "toolCallId": "t5", "state": "input-streaming", "input": {"q": "par"},
     "rawInput": '{"q": "par'},
    {"type": "source-url", "sourceId": "s", "url": "u", "title": "t"},
    {"type": "source-document", "sourceId": "d", "mediaType": "text/plain", "title": "t"},
    {"type": "file", "url": "u", "mediaType": "image/png"},
    {"type": "reasoning-file", "url": "u", "mediaType": "image/png"},
    {"type": "custom", "kind": "a.b", **PROVIDER},
    {"type": "steering-message", "id": "u", "parts": [{"type": "text", "text": "wait"}]},
    {"type": "data-x", "id": "1", "data": {"n": 2}},
    {"type": "data-x", "data": None},
    {"type": "step-start"},
    {"type": "text", "text": "kept", "state": "streaming"},
]  # fmt: skip


def test_every_chunk_of_the_protocol_makes_the_message_that_the_ai_sdk_makes() -> None:
    """All types; later chunks do not change a message that was handed out."""
    message = ResponseMessage("m")
    early = None
    for chunk in CHUNKS:
        assert parse_chunk(chunk) == chunk
        assert ADAPTER.validate_python(chunk).type == chunk["type"]
        message.add(parse_chunk(chunk))
        early = early or message.message()
    assert early == {"id": "m", "role": "assistant", "parts": [], "metadata": {"a": {"b": 1}}}
    assert message.message()["parts"] == PARTS
    assert message.message()["metadata"] == {"a": {"b": 1, "c": 2}, "z": 1}
    told = {"data-" if c["type"].startswith("data-") else c["type"] for c in CHUNKS}
    assert told == {*MODELS, "data-"}


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ({"type": "text-delta", "id": "1"}, "delta: Field required"),
        ({"type": "text-delta", "id": 1, "delta": "x"}, "id: Input should be a valid string"),
        ({"type": "data-", "data": 1}, "type: String should match"),
        ({"type": "data-x"}, "data: Field required"),
        ({"type": "token", "text": "x"}, "no chunk of the UI message stream"),
        ({"text": "x"}, "no chunk of the UI message stream"),
        (7, "not int"),
    ],
)
def test_what_is_no_chunk_says_why(chunk: Any, message: str) -> None:
    """The member and what is wrong with it; nothing is written."""
    with pytest.raises(InvalidChunk, match=message):
        parse_chunk(chunk)


def test_a_model_may_have_a_value_of_none() -> None:
    """An output, an input and data may be null; what is not set is left out."""
    chunk = ToolOutputAvailable(tool_call_id="t", output=None)
    assert parse_chunk(chunk) == {
        "type": "tool-output-available", "toolCallId": "t", "output": None,
    }  # fmt: skip


def test_members_that_no_model_names_are_kept() -> None:
    """As the AI SDK keeps them: its next version may know them."""
    chunk = {"type": "file", "url": "u", "mediaType": "image/png", "newer": [1]}
    assert parse_chunk(chunk) == chunk


def _message(message_id: str, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"id": message_id, "role": role, "parts": [], **more}


HISTORY = [_message("u1"), _message("a1", "assistant"), _message("u2"), _message("a2", "assistant")]


@pytest.mark.parametrize(
    ("request_", "ids"),
    [
        (Request("x", message=_message("u3")), ["u1", "a1", "u2", "a2", "u3"]),
        (Request("x", message=_message("u2"), message_id="u2"), ["u1", "a1", "u2"]),
        (Request("x", "regenerate-message", message_id="a2"), ["u1", "a1", "u2"]),
        (Request("x", "regenerate-message", message_id="a1"), ["u1"]),
        (Request("x", "regenerate-message", message_id="u1"), ["u1"]),
        (Request("x", "regenerate-message"), ["u1", "a1", "u2"]),
        (Request("x"), ["u1", "a1", "u2", "a2"]),
    ],
)
def test_what_a_request_makes_of_the_history(request_: Request, ids: list[str]) -> None:
    """Append, edit, regenerate; the history that was given stays as it was."""
    before = [dict(message) for message in HISTORY]
    assert [message["id"] for message in asked(HISTORY, request_)] == ids
    assert before == HISTORY


def test_a_request_survives_its_way_through_redis() -> None:
    """Also one whose text holds what separates its parts."""
    message = _message("1", parts=[{"type": "text", "text": "a\nb \u2028 \x00"}])
    request = Request("proj.agent", message=message, body={"k": None})
    assert Request.parse(request.pack()) == request
