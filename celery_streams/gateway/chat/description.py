"""The chat's part of the OpenAPI description."""

from __future__ import annotations

from celery_streams.gateway.descriptions import (
    BODY_REFUSALS,
    EVENT_ID,
    NAME,
    OFFSET,
    READ,
    TEXT,
    WHOLE,
    Document,
    answer,
    header,
    operation,
    parameter,
    path_item,
    problems,
)

_NOBODY = {404: "there is no chat agent of this name"}
_MESSAGE: Document = {
    "type": "object",
    "required": ["id", "role", "parts"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 256},
        "role": {"type": "string", "enum": ["user", "assistant"]},
        "parts": {
            "type": "array",
            "items": {"type": "object", "required": ["type"], "properties": {"type": TEXT}},
        },
    },
}
_SENT: Document = {
    "type": "object",
    "required": ["id", "messages"],
    "properties": {
        "id": NAME,
        "messages": {"type": "array", "items": _MESSAGE},
        "trigger": {"type": "string", "enum": ["submit-message", "regenerate-message"]},
        "messageId": {"type": "string", "minLength": 1, "maxLength": 256},
        "branch": NAME,
    },
}


_REFERENCE: Document = {
    "type": "object",
    "required": ["streamUrl"],
    "properties": {"streamUrl": TEXT},
}


def paths() -> Document:
    """Sending, resuming, stopping, and the messages."""
    return {**_default(), **_durable()}


def _durable() -> Document:
    """The same for clients of Durable Streams."""
    one: dict[str, Document] = {"agent": NAME, "session_id": NAME}
    referred = (("Location",), "application/json", _REFERENCE)
    refused = {
        409: "the session's inbox was closed",
        415: "it is not JSON",
        429: "too many messages wait",
        **_NOBODY,
        **BODY_REFUSALS,
    }
    gone = {
        404: "there is no such answer, or no chat agent of this name",
        410: "the answer was trimmed",
    }
    named = [
        parameter("query", "message", {"type": "string", "minLength": 1, "maxLength": 256}),
        parameter("query", "from", WHOLE),
        parameter("query", "offset", OFFSET),
    ]
    return {
        "/chat/{agent}/durable": path_item(
            {"agent": NAME},
            post=operation(
                "send a message, and hear where its answer is a Durable Stream",
                {**answer(201, "there", *referred), **problems(refused)},
                body={"required": True, "content": {"application/json": {"schema": _SENT}}},
            ),
        ),
        "/chat/{agent}/durable/{session_id}/stream": path_item(
            one,
            get=operation(
                "where the answer of the active turn is a Durable Stream",
                {
                    **answer(200, "there", *referred),
                    **answer(204, "no turn is active"),
                    **problems(_NOBODY),
                },
            ),
        ),
        "/chat/{agent}/{session_id}/answer": path_item(
            one,
            get=operation(
                "read an answer, to its present end or live",
                {
                    **answer(200, "chunks; as events if live=sse", READ, "*/*"),
                    **answer(204, "nothing new, or nothing more", READ),
                    **problems({429: "the token has too many live reads open", **gone}),
                },
                parameters=[
                    *named,
                    parameter("query", "live", {"type": "string", "enum": ["long-poll", "sse"]}),
                    parameter("query", "cursor", {"type": "string", "pattern": "^[0-9]{1,12}$"}),
                    header("Last-Event-ID", EVENT_ID),
                ],
            ),
            head=operation(
                "where an answer ends",
                {**answer(200, "it is there", READ), **problems(gone)},
                parameters=named,
            ),
        ),
    }


def _default() -> Document:
    session = "/chat/{agent}/{session_id}"
    stream = answer(200, "the answer, as a UI message stream", (), "text/event-stream")
    one: dict[str, Document] = {"agent": NAME, "session_id": NAME}
    refused = {
        409: "the session's inbox was closed",
        415: "it is not JSON",
        429: "too many messages wait, or the token has too many live reads open",
        **_NOBODY,
        **BODY_REFUSALS,
    }
    return {
        "/chat/{agent}": path_item(
            {"agent": NAME},
            post=operation(
                "send a message, and read its answer",
                {**stream, **problems(refused)},
                body={"required": True, "content": {"application/json": {"schema": _SENT}}},
            ),
        ),
        f"{session}/stream": path_item(
            one,
            get=operation(
                "read the answer of the active turn, from its beginning",
                {
                    **stream,
                    **answer(204, "no turn is active"),
                    **problems({429: refused[429], **_NOBODY}),
                },
            ),
        ),
        f"{session}/stop": path_item(
            one,
            post=operation(
                "ask the active turn to stop",
                {
                    **answer(202, "it was asked", (), "application/json"),
                    **answer(200, "no such turn is active", (), "application/json"),
                    **problems(_NOBODY),
                },
                parameters=[parameter("query", "message", {"type": "string"})],
            ),
        ),
        f"{session}/messages": path_item(
            one,
            get=operation(
                "the session's history",
                {**answer(200, "the messages", (), "application/json"), **problems(_NOBODY)},
            ),
        ),
        f"{session}/branches": path_item(
            one,
            get=operation(
                "what edits and regenerates have left behind",
                {**answer(200, "the branches", (), "application/json"), **problems(_NOBODY)},
            ),
        ),
        f"{session}/branches/{{branch_id}}": path_item(
            {**one, "branch_id": NAME},
            get=operation(
                "the messages of a branch",
                {
                    **answer(200, "the messages", (), "application/json"),
                    **problems({404: "there is no such agent, or no such branch"}),
                },
            ),
        ),
    }
