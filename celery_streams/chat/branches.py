"""What an edit or a regenerate leaves behind: :class:`Branch`. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery_streams.chat.requests import Message, Request, text_of

#: Characters of a message's text that are listed.
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a session, as it is listed.

    Attributes:
        id: names it, within its session.
        left_at: when the session went another way.
        after: the id of the last message that it had in common with the history then, ``None`` if
            they had none.
        text: the beginning of the text of the first message that is its own.
        count: messages in it, the common ones included.
    """

    id: str
    left_at: datetime
    after: str | None
    text: str
    count: int

    def document(self) -> dict[str, Any]:
        """As the gateway tells it."""
        left_at = self.left_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "id": self.id,
            "leftAt": left_at,
            "after": self.after,
            "text": self.text,
            "count": self.count,
        }

    @classmethod
    def parse(cls, branch_id: str, milliseconds: float, about: dict[str, Any]) -> Branch:
        """What :attr:`Left.about` was, and what the store adds."""
        left_at = datetime.fromtimestamp(milliseconds / 1000, UTC)
        return cls(branch_id, left_at, about["after"], about["text"], about["count"])


@dataclass(frozen=True, slots=True)
class Left:
    """What a turn leaves, to be kept with its end.

    ``messages`` are the branch's, none if it leaves none; the first ``shared`` of them are in the
    new history, too. ``continued`` is a branch that is none any more: the new history contains it.
    """

    messages: Sequence[Message] = ()
    shared: int = 0
    continued: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What is listed of the branch."""
        return {
            "after": self.messages[self.shared - 1]["id"] if self.shared else None,
            "text": text_of(self.messages[self.shared])[:_SHOWN],
            "count": len(self.messages),
        }


def left_behind(
    history: Sequence[Message],
    branch: Sequence[Message] | None,
    now: Sequence[Message],
    request: Request,
) -> Left:
    """What is left when ``request`` makes ``now`` of the history, or of the ``branch`` it names."""
    continued = None
    if branch is not None and _shared(branch, now) == len(branch):
        continued = request.branch
    shared = _shared(history, now)
    if shared == len(history):
        return Left(continued=continued)
    return Left(history, shared, continued)


def _shared(former: Sequence[Message], now: Sequence[Message]) -> int:
    """How many messages both begin with."""
    for place, (mine, theirs) in enumerate(zip(former, now, strict=False)):
        if mine != theirs and not _goes_on(mine, theirs):
            return place
    return min(len(former), len(now))


def _goes_on(mine: Message, theirs: Message) -> bool:
    """An answer keeps its id only when it is continued: with a tool's output, say."""
    return bool(mine["role"] == "assistant" and mine["id"] == theirs["id"])
