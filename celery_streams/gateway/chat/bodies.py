"""What ``DefaultChatTransport`` sends, checked and turned into a request for an agent."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from celery_streams.chat.requests import Message, Request, new_id
from celery_streams.chunks import encode_json
from celery_streams.errors import InvalidChunk, InvalidName
from celery_streams.gateway.problems import Problem
from celery_streams.slots import check_name

_TRIGGERS = ("submit-message", "regenerate-message")
_OURS = ("id", "messages", "trigger", "messageId", "branch")
#: Longest id of a message, characters.
_LONGEST_ID = 256


def parse_body(body: bytes, agent: str) -> tuple[str, Request]:
    """The session's id and the request for ``agent`` (a task's name).

    Raises:
        Problem: 400; it says what is wrong.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _bad(f"the body is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise _bad("the body is not an object")
    try:
        session_id = check_name(values.get("id"), "id, the chat's,")
    except InvalidName as error:
        raise _bad(str(error)) from None
    trigger = values.get("trigger", "submit-message")
    if trigger not in _TRIGGERS:
        raise _bad(f"trigger must be one of {', '.join(_TRIGGERS)}")
    message = _last(values.get("messages"))
    branch = values.get("branch")
    if branch is not None:
        try:
            check_name(branch, "branch")
        except InvalidName as error:
            raise _bad(str(error)) from None
    message_id = values.get("messageId")
    if message_id is not None:
        _check_id(message_id, "messageId")
    if trigger == "submit-message" and message is None:
        raise _bad("messages is empty; the last one is what the agent is to answer")
    continued = message is not None and message["role"] == "assistant"
    if continued and trigger == "submit-message":
        message_id = None  # useChat gives the id of the message that it continues
    request = Request(
        agent,
        trigger,
        message,
        message_id,
        {name: value for name, value in values.items() if name not in _OURS},
        message["id"] if message and continued and trigger == "submit-message" else new_id(),
        branch,
    )
    try:
        encode_json([request.message, request.body])
    except InvalidChunk as error:  # 1e999 is JSON, and infinity to whoever reads it
        raise _bad(str(error)) from None
    return session_id, request


def _last(messages: Any) -> Message | None:
    if not isinstance(messages, list):
        raise _bad("messages must be a list of UI messages")
    if not messages:
        return None
    message = messages[-1]
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise _bad("the last message must have the role user or assistant")
    _check_id(message.get("id"), "the last message's id")
    parts = message.get("parts")
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts
    ):
        raise _bad("the last message's parts must be a list of objects with a type")
    kept = ("id", "role", "parts", "metadata")
    return {name: message[name] for name in kept if message.get(name) is not None}


def _check_id(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID or not value.isprintable():
        raise _bad(f"{what} must be a string of 1 to {_LONGEST_ID} printable characters")


def _bad(detail: str) -> Problem:
    return Problem(400, "invalid-chat-request", detail)
