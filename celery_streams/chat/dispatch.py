"""The Celery message of a turn."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from celery_streams.chat.turns import Dispatch, TurnCommands
from celery_streams.errors import StreamError
from celery_streams.redis.client import RedisLink

logger = logging.getLogger("celery_streams.chat")

#: Header of a message that belongs to a turn which exists already.
HEADER = "celery_streams_turn"
#: What a task says of its own messages.
_OPTIONS = ("queue", "exchange", "routing_key", "priority", "serializer", "compression")


def publish(app: Celery, due: Dispatch) -> None:
    """Give the broker the message of a turn. The task need not be registered in this process."""
    agent = due.request.agent
    task: Any = app.tasks.get(agent)
    options = {name: value for name in _OPTIONS if (value := getattr(task, name, None)) is not None}
    argument = getattr(task, "session_argument", None) or "session_id"
    # Not apply_async: it would miss the argument that the worker adds, the message.
    app.send_task(
        agent,
        kwargs={argument: due.session_id},
        task_id=due.task_id,
        headers={HEADER: True},
        **options,
    )


def dispatch_next(
    app: Celery | None, link: RedisLink, commands: TurnCommands, due: Dispatch | None
) -> None:
    """:func:`dispatch` the turn after one that has ended, which must not fail for it.

    If the broker is away, whoever waits for the answer has it sent again.
    """
    if due is None or app is None:
        return
    try:
        dispatch(app, link, commands, due)
    except Exception as error:
        logger.warning("could not send the next turn of session %s: %s", due.session_id, error)


def dispatch(app: Celery, link: RedisLink, commands: TurnCommands, due: Dispatch) -> None:
    """:func:`publish`, and note that the broker has it.

    A turn whose message was lost on the way is sent again by whoever next asks for its session.
    """
    publish(app, due)
    try:
        link.call(commands.sent(due))
    except StreamError as error:
        logger.info("could not note that turn %s was sent: %s", due.task_id, error)
