"""Who a running task is, read off Celery's request: :class:`RunIdentity`."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from celery_streams.contracts import Attempt
from celery_streams.errors import InvalidName
from celery_streams.slots import check_name

#: Retries a generation has room for; a replacement (``self.replace``) starts the next block.
_RETRIES = 1 << 20

#: Header of tasks that a chat agent has sent, and of those that they send.
SESSION_HEADER = "celery_streams_session"


def process_name(pid: int) -> str:
    """How attempts name the process that executes them: the same in it and in its parent."""
    return f"{socket.gethostname()}/{pid}"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """A run, its relatives, and the attempt that is executing it."""

    run_id: str
    parent_id: str
    root_id: str
    attempt: Attempt
    retries: int
    #: Neither a retry nor a redelivery nor a replacement: nobody can have been here before.
    first: bool
    #: The chat session that the task, or the chat agent that sent it, answers in.
    session: str | None = None

    def resolve(self, target: str) -> str:
        """The run id that ``target`` names; a run without parent or root is its own."""
        match target:
            case "self":
                return self.run_id
            case "parent":
                return self.parent_id
            case "root":
                return self.root_id
        return target


def identify(request: Any, *, grace: float = 0.0, inside: RunIdentity | None = None) -> RunIdentity:
    """The identity in a Celery request (the worker's or the task's own).

    ``grace`` is how many seconds a lost worker's message may take to be delivered again.
    ``inside`` is whose body this one is executed in: an eager retry or replacement has the run
    id of its caller, and succeeds it, though Celery's request may not say so.
    A request without an id (a task called as a function) gets a run id of its own.

    Raises:
        InvalidName: the task id cannot name a run.
    """
    task_id = getattr(request, "id", None)
    run_id = check_name(task_id if task_id is not None else secrets.token_hex(16), "task id")
    delivery = getattr(request, "delivery_info", None) or {}
    redelivered = bool(delivery.get("redelivered"))
    retries = int(getattr(request, "retries", 0) or 0)
    nesting = int(getattr(request, "replaced_task_nesting", 0) or 0)
    generation = nesting * _RETRIES + min(retries, _RETRIES - 1)
    if inside is not None and inside.run_id == run_id:
        redelivered = True
        generation = max(generation, inside.attempt.generation)
    attempt = Attempt(
        run_id,
        f"{secrets.token_hex(8)}@{process_name(os.getpid())}",
        generation=generation,
        redelivered=redelivered,
        grace_ms=round(grace * 1000),
    )
    return RunIdentity(
        run_id,
        _relative(getattr(request, "parent_id", None), run_id),
        _relative(getattr(request, "root_id", None), run_id),
        attempt,
        retries,
        first=not (redelivered or retries or nesting),
        session=getattr(request, SESSION_HEADER, None),
    )


def _relative(task_id: object, run_id: str) -> str:
    if task_id is None:
        return run_id
    try:
        return check_name(task_id, "task id")
    except InvalidName:
        return run_id
