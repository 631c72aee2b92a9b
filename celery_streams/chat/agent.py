"""The base class of chat-agent tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Task

if TYPE_CHECKING:
    from celery_streams.chat.context import Chat
    from celery_streams.chat.requests import Message
    from celery_streams.task.run_streams import RunStreams


class ChatAgent(Task):
    """Base of a chat-agent task: it answers in a session, through ``self.chat``.

    One run of the task is one turn. The session id is the task's argument ``session_id``; a task
    that names it otherwise sets ``session_argument``. An argument ``message`` is optional::

        @app.task(bind=True, base=ChatAgent)
        def agent(self, session_id):
            for token in llm(self.chat.messages):
                self.chat.response.text(token)

    The hooks below do nothing unless a class defines them; all may use ``self.chat``.
    """

    abstract = True

    #: A worker that dies is no reason to lose a turn: its message comes back, and the next
    #: attempt begins the same answer again.
    acks_late = True
    reject_on_worker_lost = True

    #: Attempts that a turn has, its retries not counted, before it ends with an error: what kills
    #: its worker does not do so for ever.
    max_attempts = 5

    #: Name of the argument that carries the session id.
    session_argument = "session_id"
    #: A request to stop makes the next write raise ``StopRequested``, which need not be caught.
    raise_on_stop = False
    #: Steps that the agent begins itself are in the stored message, and not sent: the page would
    #: keep finished steps of an attempt that died (only the last one can be taken back).
    fold_steps = True

    def load_messages(self, session_id: str) -> list[Message] | None:
        """The history, from wherever you keep it; ``None``: the snapshot in Redis."""
        return None

    def save_messages(self, session_id: str, messages: list[Message]) -> None:
        """Keep the history, the new answer at its end. May be called twice for one turn, with the
        same message ids, if a worker dies meanwhile."""

    def load_branch(self, session_id: str, branch_id: str) -> list[Message] | None:
        """A branch that :meth:`save_branch` has kept; ``None``: the copy in Redis."""
        return None

    def save_branch(self, session_id: str, branch_id: str, messages: list[Message]) -> None:
        """Keep what an edit or a regenerate leaves behind: the history as it was. Called before
        :meth:`save_messages`, perhaps twice with the same id."""

    def on_chat_start(self) -> None:
        """The session's first turn begins."""

    def on_turn_start(self) -> None:
        """A turn begins, or begins again after a crash."""

    def on_turn_complete(self) -> None:
        """A turn has ended and is stored, also if it was stopped."""

    def on_error(self, error: Exception) -> None:
        """The task has raised, and is not tried again."""

    def error_text(self, error: Exception) -> str:
        """What the page is told of an exception; nothing of it, by default."""
        return "An error occurred."

    if TYPE_CHECKING:

        @property
        def chat(self) -> Chat:
            """The session this task answers in."""

        @property
        def streams(self) -> RunStreams:
            """The run-scoped streams."""
