"""The chat's part of the OpenAPI description."""

from __future__ import annotations

from celery_streams.gateway.descriptions import (
    BODY_REFUSALS,
    NAME,
    TEXT,
    Document,
    answer,
    operation,
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
    },
}


def paths() -> Document:
    """Sending, resuming, stopping, and the messages."""
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
                    **answer(200, "no turn is active", (), "application/json"),
                    **problems(_NOBODY),
                },
            ),
        ),
        f"{session}/messages": path_item(
            one,
            get=operation(
                "the session's history",
                {**answer(200, "the messages", (), "application/json"), **problems(_NOBODY)},
            ),
        ),
    }
