"""What a request makes of the history. No I/O: the worker and the gateway ask the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery_streams.chat.requests import Message, Request, answers_of

#: What a page's answer to a tool call may change in it.
_ANSWER_MEMBERS = ("state", "output", "errorText", "approval")
#: In which the server waits for it.
_WAITING = ("input-available", "approval-requested")


def asked(history: Sequence[Message] | None, request: Request) -> list[Message]:
    """The history that the answer to ``request`` follows; its last message is what is answered.

    - A new message is appended; one whose id is known replaces it and drops what came after
      (an edit).
    - Regenerating drops the answer with the id given, else the last one, and what came after.
    - A message of the assistant's own brings outputs and approvals of its open tool calls, and
      nothing else.
    """
    messages = list(history or ())
    if request.trigger == "regenerate-message":
        return _regenerated(messages, request.message_id, request.message)
    message = request.message
    if message is None:
        return messages
    if message["role"] == "assistant":
        return _continued(messages, message)
    return [*_before(messages, request.message_id or message["id"]), message]


def with_taken(messages: list[Message], taken: Iterable[Request]) -> list[Message]:
    """The history with messages that the running turn has read from its inbox."""
    known = {message["id"] for message in messages}
    more = [each.message for each in taken if each.message is not None]
    return [*messages, *(message for message in more if message["id"] not in known)]


def gone_on_with(
    messages: Sequence[Message], reply: str, taken: Iterable[Request]
) -> Message | None:
    """The answer that a response message of the id ``reply`` goes on with, if there is one.

    It is the last message, but for those that the running turn has read from its inbox.
    """
    read = {each.message["id"] for each in taken if each.message is not None}
    for message in reversed(messages):
        if message["id"] == reply:
            return message
        if message["id"] not in read:
            return None
    return None


def with_reply(messages: list[Message], reply: Message) -> list[Message]:
    """The history with the response message at its end, in place of one of that id."""
    return [*(message for message in messages if message["id"] != reply["id"]), reply]


def _before(messages: list[Message], message_id: str) -> list[Message]:
    for place, message in enumerate(messages):
        if message["id"] == message_id:
            return messages[:place]
    return messages


def _regenerated(
    messages: list[Message], message_id: str | None, last: Message | None
) -> list[Message]:
    for place, message in enumerate(messages):
        if message["id"] == message_id:
            return messages[: place + (message["role"] == "user")]
    if message_id is None and messages and messages[-1]["role"] == "assistant":
        return messages[:-1]
    known = {message["id"] for message in messages}
    if last is not None and last["role"] == "user" and last["id"] not in known:
        return [*messages, last]  # its first answer was lost before it was stored
    return messages


def _continued(messages: list[Message], theirs: Message) -> list[Message]:
    if not messages or messages[-1]["id"] != theirs["id"]:
        return messages
    given = answers_of(theirs)
    parts = []
    for part in messages[-1]["parts"]:
        answer = given.get(part.get("toolCallId"))
        if answer is not None and part.get("state") in _WAITING:
            part = {**part, **{key: answer[key] for key in _ANSWER_MEMBERS if key in answer}}
            if "approval" in part and isinstance(part["approval"], dict):
                part["approval"] = {**part["approval"], "id": _approval_id(messages[-1], part)}
        parts.append(part)
    return [*messages[:-1], {**messages[-1], "parts": parts}]


def _approval_id(message: Message, part: dict[str, object]) -> object:
    for known in message["parts"]:
        if known.get("toolCallId") == part["toolCallId"] and known.get("approval"):
            return known["approval"].get("id")
    return None
