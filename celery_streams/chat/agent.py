"""The base class of chat-agent tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Task

if TYPE_CHECKING:
    from celery_streams.chat.context import Chat
    from celery_streams.task.run_streams import RunStreams


class ChatAgent(Task):
    """Base of a chat-agent task: it answers in a session, through ``self.chat``.

    The session id is the task's argument ``session_id``; a task that names it otherwise sets
    ``session_argument``::

        @app.task(bind=True, base=ChatAgent)
        def agent(self, session_id, message):
            self.chat.response.write({"type": "text-delta", "id": "1", "delta": "Hi"})
    """

    abstract = True

    #: Name of the argument that carries the session id.
    session_argument = "session_id"

    if TYPE_CHECKING:

        @property
        def chat(self) -> Chat:
            """The session this task answers in."""

        @property
        def streams(self) -> RunStreams:
            """The run-scoped streams."""
