"""What starts a turn: :class:`Request`, and the form in which it waits in Redis."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_json

from celery_streams.errors import InvalidName

Trigger = Literal["submit-message", "regenerate-message"]
#: A message as the AI SDK has it: ``{"id": ..., "role": ..., "parts": [...]}``.
Message = dict[str, Any]

#: What a page may say of a tool call that is the server's to know otherwise.
_ANSWERS = ("output-available", "output-error", "approval-responded")


def new_id(kind: str = "msg") -> str:
    """An id for a message, a part or a turn."""
    return f"{kind}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Request:
    """One thing a client wants answered.

    ``agent`` is the task's name, ``reply`` the id that the answer gets. ``arguments`` are those
    of a task that was called directly, ``None`` else.
    """

    agent: str
    trigger: Trigger = "submit-message"
    message: Message | None = None
    #: The message that is edited or regenerated.
    message_id: str | None = None
    #: Whatever else the client has sent.
    body: dict[str, Any] = field(default_factory=dict)
    reply: str = field(default_factory=new_id)
    #: The branch that is continued, instead of the history.
    branch: str | None = None

    @property
    def once(self) -> str:
        """What tells a request that is sent twice; empty for one that may be.

        The id of a user's message. Of the assistant's own, which goes on with what pages say of
        its tool calls, its id and a digest of which calls were answered (or approved), and of how
        much of the message there was. Not of what was answered: the first answer counts.
        """
        message = self.message
        if self.trigger != "submit-message" or self.message_id or message is None:
            return ""
        if message["role"] == "user":
            return str(message["id"])
        told = answers_of(message)
        if not told:
            return ""
        # Steps are not counted: a page that was loaded again has those that were folded.
        size = sum(part.get("type") != "step-start" for part in message["parts"])
        which = sorted(
            [call_id, part["state"] == "approval-responded"] for call_id, part in told.items()
        )
        digest = hashlib.sha256(to_json([size, which])).hexdigest()
        return f"{message['id']} {digest}"

    def pack(self) -> bytes:
        """As it is kept: agent, reply and :attr:`once`, a line each, then JSON on one line.

        Raises:
            InvalidName: one of them contains a line end.
        """
        names = (self.agent, self.reply, self.once)
        for name in names:
            if not name.isprintable():
                raise InvalidName(f"the name {name!a} contains an unprintable character")
        content = to_json(
            {
                "trigger": self.trigger,
                "message": self.message,
                "messageId": self.message_id,
                "body": self.body,
                "branch": self.branch,
            },
            inf_nan_mode="null",
        )
        return b"\n".join([*(name.encode() for name in names), content])

    @classmethod
    def parse(cls, packed: bytes) -> Request:
        """What :meth:`pack` has made."""
        agent, reply, _, content = packed.split(b"\n", 3)
        values = from_json(content)
        return cls(
            agent.decode(),
            values["trigger"],
            values["message"],
            values["messageId"],
            values["body"],
            reply.decode(),
            values.get("branch"),
        )


def answers_of(message: Message) -> dict[str, Message]:
    """The parts by which a page answers or approves tool calls, by the call's id."""
    return {
        part["toolCallId"]: part
        for part in message["parts"]
        if part.get("state") in _ANSWERS and isinstance(part.get("toolCallId"), str)
    }


def user_message(content: str | Message) -> Message:
    """A message as the AI SDK has it, of a text or of one that may lack id and role."""
    if isinstance(content, str):
        return {"id": new_id(), "role": "user", "parts": [{"type": "text", "text": content}]}
    return {"id": new_id(), "role": "user", "parts": [], **content}


def text_of(message: Message | None) -> str:
    """The text of a message's text parts."""
    parts = message.get("parts") if message else None
    return "".join(
        part["text"]
        for part in parts or ()
        if isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )
