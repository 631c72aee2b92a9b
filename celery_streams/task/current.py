"""The task this code runs in: what ``self.streams`` and the proxies look up."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_streams.errors import OutsideTask

if TYPE_CHECKING:
    from celery_streams.chat.context import Chat
    from celery_streams.task.attempt import RefusedAttempt, RunningAttempt
    from celery_streams.task.run_streams import RunStreams

running: ContextVar[RunningAttempt | RefusedAttempt | None] = ContextVar(
    "celery_streams_attempt", default=None
)


def run_streams() -> RunStreams:
    """The running task's streams.

    Raises:
        OutsideTask: no task runs in this thread or greenlet.
    """
    attempt = running.get()
    if attempt is None:
        raise OutsideTask(
            "run-scoped streams were used outside a task. To write to a run from elsewhere use "
            "streams.write_to(run_id, key); in a thread that a task started, pass the thread "
            "the task's self.streams"
        )
    return attempt.streams


def run_chat() -> Chat:
    """The running chat-agent task's chat.

    Raises:
        OutsideTask: no task runs here, or it is not a ``ChatAgent`` task.
    """
    attempt = running.get()
    if attempt is None or attempt.chat is None:
        raise OutsideTask(
            "self.chat belongs to a running chat-agent task; declare the task with "
            "@app.task(bind=True, base=ChatAgent)"
        )
    return attempt.chat


class _Proxy:
    """Forwards every attribute to an object that is looked up anew each time."""

    __slots__ = ("_look_up",)

    def __init__(self, look_up: Any) -> None:
        object.__setattr__(self, "_look_up", look_up)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_look_up")(), name)

    def __repr__(self) -> str:
        try:
            return repr(object.__getattribute__(self, "_look_up")())
        except OutsideTask:
            return "<no task is running>"


if TYPE_CHECKING:
    current_streams: RunStreams
    current_chat: Chat
else:
    #: ``self.streams`` for tasks without ``bind=True``.
    current_streams = _Proxy(run_streams)
    #: ``self.chat`` for chat-agent tasks without ``bind=True``.
    current_chat = _Proxy(run_chat)
