"""Turns whose own process cannot end them: killed, out of time, or revoked."""

from __future__ import annotations

import logging
from typing import Any

from pydantic_core import to_json

from celery_streams.chat.chunks import parse_chunk
from celery_streams.chat.dispatch import dispatch_next
from celery_streams.chat.history import gone_on_with, with_reply
from celery_streams.chat.keeping import opened, opened_from_snapshot, saved
from celery_streams.chat.message import ResponseMessage
from celery_streams.chat.requests import Message
from celery_streams.chat.turns import ActiveTurn, TurnCommands
from celery_streams.chunks import decode, unframe
from celery_streams.contracts import JSON
from celery_streams.errors import InvalidChunk, OffsetGone
from celery_streams.runtime import Runtime
from celery_streams.slots import Slot

logger = logging.getLogger("celery_streams.chat")

#: How often a turn is sent again whose task fails before it begins.
_RESENDS = 5
_TEXT = "An error occurred."


def end_for_worker(
    task: Any, session_id: str, task_id: str, runtime: Runtime, app: Any, *, stopped: bool
) -> None:
    """End the turn that ``task_id`` had, as failed or as ``stopped``; what it wrote is kept.

    Nothing if the turn is not its own any more.
    """
    if not runtime.records_runs:
        return
    commands = TurnCommands(runtime.layout, runtime.settings)
    state = runtime.link.call(commands.look(session_id))
    turn = state.active
    if turn is None or turn.task_id != task_id:
        return
    if not stopped and not turn.attempts and turn.resent < _RESENDS:
        return  # Celery failed, not the task: its result backend was away. It is sent again.
    look = (turn.request, state.history, state.taken)

    def read_branch(session_id: str, branch_id: str) -> list[Message] | None:
        return runtime.link.call(commands.branch(session_id, branch_id))

    unsaved: Exception | None = None
    try:
        messages, left = opened(task, session_id, *look, read_branch, again=True)
    except Exception as error:
        unsaved = error
        messages, left = opened_from_snapshot(*look)
    continued = gone_on_with(messages, turn.reply, state.taken)
    message = _written(runtime, session_id, turn, continued)
    chunks: list[Any] = [{"type": f"{kind}-end", "id": each} for kind, each in message.open_parts]
    if not turn.attempts:  # nothing has begun it, and readers wait for its beginning
        chunks = [{"type": "start", "messageId": turn.reply}, {"type": "start-step"}]
    if stopped:
        chunks.append({"type": "message-metadata", "messageMetadata": {"aborted": True}})
        chunks.append({"type": "abort", "reason": "stopped"})
    else:
        chunks.append({"type": "error", "errorText": _TEXT})
        chunks.append({"type": "finish", "finishReason": "error"})
    for chunk in chunks:
        message.add(chunk)
    reply = message.message()
    if any(part["type"] != "step-start" for part in reply["parts"]):
        messages = with_reply(messages, reply)
    unsaved = unsaved or saved(task, session_id, turn.turn_id, messages, left)
    if unsaved is not None:
        logger.error("could not save the messages of session %s: %r", session_id, unsaved)
    packed = [to_json(chunk) for chunk in chunks]
    call = commands.finish(session_id, task_id, "", messages, packed, left)
    _, due = runtime.link.call(call)
    dispatch_next(app, runtime.link, commands, due)


def _written(
    runtime: Runtime, session_id: str, turn: ActiveTurn, continued: Message | None
) -> ResponseMessage:
    """The response message as far as it is in ``out``."""
    message = ResponseMessage(turn.reply, continued)
    slot, offset = Slot.session(session_id, "out"), turn.start
    while True:
        try:
            page = runtime.store.read(slot, offset)
        except OffsetGone:
            return message
        for entry in page.entries:
            for data in unframe(entry.payload, JSON)[max(0, offset - entry.start) :]:
                try:
                    message.add(parse_chunk(decode(data, JSON)))
                except InvalidChunk:
                    continue  # of chat.stream
            offset = entry.end
        if not page.entries:
            return message
