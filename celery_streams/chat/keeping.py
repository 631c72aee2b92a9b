"""The history that a turn starts from, what it leaves of it, and what is saved in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery_streams.chat.branches import Left, left_behind
from celery_streams.chat.history import asked, with_taken
from celery_streams.chat.requests import Message, Request
from celery_streams.errors import StreamError, StreamNotFound

ReadBranch = Callable[[str, str], list[Message] | None]


def opened(
    task: Any,
    session_id: str,
    request: Request,
    stored: list[Message] | None,
    taken: Sequence[Request],
    read_branch: ReadBranch,
    *,
    again: bool,
) -> tuple[list[Message], Left]:
    """The messages that the answer to ``request`` follows, and what it leaves behind.

    Args:
        task: the chat agent, for its hooks.
        stored: the snapshot, as the last turn has left it.
        taken: what the turn has read from its inbox.
        read_branch: looks for a branch's messages, by session and id.
        again: an attempt of this turn may have come as far as saving what it had.

    Raises:
        StreamNotFound: the branch that the request names is gone.
        StreamError: the answer that the request goes on with is not the last message (any more).
        Exception: whatever the hooks raise.
    """
    loaded: list[Message] | None = task.load_messages(session_id)
    history = stored if loaded is None else loaded
    if again and stored is not None and _has(history, request.reply) and history != stored:
        history = stored
    if not _continues(request) and _has(history, request.reply):
        history = _until(history, request.reply)
    branch = None
    if request.branch is not None:
        branch = task.load_branch(session_id, request.branch)
        if branch is None:
            branch = read_branch(session_id, request.branch)
        if branch is None:
            raise StreamNotFound(
                f"session {session_id} has no branch {request.branch!a} (any more)"
            )
    if _continues(request):
        base = history if branch is None else branch
        if not base or base[-1]["id"] != request.reply:
            raise StreamError(
                f"session {session_id} has gone on since the message {request.reply!a}, which "
                "can only be continued while it is the last one"
            )
    return _made(request, history, branch, taken)


def opened_from_snapshot(
    request: Request, stored: list[Message] | None, taken: Sequence[Request]
) -> tuple[list[Message], Left]:
    """:func:`opened` for when that is not possible."""
    return _made(request, stored, None, taken)


def saved(
    task: Any, session_id: str, turn_id: str, messages: list[Message], left: Left
) -> Exception | None:
    """Give history and branch to the task's hooks; what they raise is no reason to keep a turn
    open, and returned."""
    try:
        if left.messages:
            task.save_branch(session_id, turn_id, list(left.messages))
        task.save_messages(session_id, messages)
    except Exception as error:
        return error
    return None


def _made(
    request: Request,
    history: list[Message] | None,
    branch: list[Message] | None,
    taken: Sequence[Request],
) -> tuple[list[Message], Left]:
    now = asked(history if branch is None else branch, request)
    return with_taken(now, taken), left_behind(history or (), branch, now, request)


def _continues(request: Request) -> bool:
    return request.message is not None and request.message["id"] == request.reply


def _has(history: Sequence[Message] | None, message_id: str) -> bool:
    return any(message["id"] == message_id for message in history or ())


def _until(history: Sequence[Message] | None, message_id: str) -> list[Message]:
    kept = []
    for message in history or ():
        if message["id"] == message_id:
            break
        kept.append(message)
    return kept
