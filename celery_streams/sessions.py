"""Sessions from outside a task: ``streams.session(id)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery

from celery_streams.chat.agent import ChatAgent
from celery_streams.chat.branches import Branch
from celery_streams.chat.dispatch import dispatch
from celery_streams.chat.history import asked, with_taken
from celery_streams.chat.requests import Message, Request, user_message
from celery_streams.chat.turns import SessionState, TurnCommands
from celery_streams.contracts import Head, Offset
from celery_streams.errors import ConfigurationError, StreamNotFound
from celery_streams.slots import Slot, check_name
from celery_streams.tokens import scope

if TYPE_CHECKING:
    from celery_streams.app import Streams
    from celery_streams.reading.reader import AsyncReader, Reader
    from celery_streams.writing.writer import Writer


class SessionStream:
    """One channel of a session."""

    def __init__(self, owner: Streams, slot: Slot) -> None:
        self._owner = owner
        self.slot = slot

    def read(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> Reader[Any]:
        """Iterate over the channel's chunks. See :meth:`celery_streams.Streams.read`."""
        return self._owner.open_reader(self.slot, offset, timeout)

    def aread(self, *, offset: Offset = 0, timeout: float | None = 60.0) -> AsyncReader[Any]:
        """:meth:`read` for an event loop."""
        return self._owner.open_async_reader(self.slot, offset, timeout)

    def head(self) -> Head:
        """The channel's state. Raises :class:`StreamNotFound` before the first chunk."""
        return self._owner.runtime.store.head(self.slot)

    def writer(self) -> Writer:
        """A writer, best used as a context manager (it waits at the end)."""
        return self._owner.open_writer(self.slot)

    def append(self, chunk: Any, *, timeout: float | None = None) -> int:
        """Write one chunk, wait until it is durable, return its sequence number."""
        return self._owner.append_to(self.slot, chunk, timeout)

    def revoke(self) -> int:
        """Withdraw the channel's write credentials. See :meth:`celery_streams.Streams.revoke`."""
        return self._owner.runtime.authority.revoke(self.slot)

    def close(self) -> Head:
        """End the channel for good."""
        return self._owner.close_stream(self.slot)


class Session:
    """A chat session: ``out`` is what its agents write, ``inbox`` what is sent to them."""

    def __init__(self, owner: Streams, session_id: str) -> None:
        self.session_id = session_id
        self.out = SessionStream(owner, Slot.session(session_id, "out"))
        self.inbox = SessionStream(owner, Slot.session(session_id, "in"))
        self._owner = owner

    def send(
        self,
        message: str | Message,
        *,
        agent: Any = None,
        body: dict[str, Any] | None = None,
        replaces: str | None = None,
        branch: str | None = None,
    ) -> str:
        """Have the session's agent answer a message: now, or when the active turn is over.

        Args:
            message: a text, or a UI message (``parts``, and ``id`` if the same message may be sent
                twice: it is answered once).
            agent: the chat-agent task or its name; without one, the session's last, or the only
                one that the app has.
            body: what the task finds in ``self.chat.body``.
            replaces: the id of a message to edit: this one takes its place, and what was there is
                left in a branch.
            branch: the id of a branch to go on with; the history becomes a branch then.

        Returns:
            The id that the response message gets.

        Raises:
            ConfigurationError: there is no telling which agent.
            InvalidName: no branch can be called that.
            TooManyMessages: ``chat_max_pending`` messages wait already.
            StreamClosed: the inbox has been closed.
            StoreUnavailable: the store cannot be reached.
        """
        sent = user_message(message)
        if replaces is not None:
            sent = {**sent, "id": replaces}
        return self._ask(
            Request(
                self._agent(agent),
                message=sent,
                message_id=replaces,
                body=body or {},
                branch=branch,
            )
        )

    def regenerate(
        self,
        answer: str | None = None,
        *,
        agent: Any = None,
        body: dict[str, Any] | None = None,
        branch: str | None = None,
    ) -> str:
        """Have a question answered again: that of the message ``answer``, or the last one.

        The answer there is, and what came after it, is left in a branch. Other arguments, the
        result and what is raised: see :meth:`send`.
        """
        return self._ask(
            Request(
                self._agent(agent),
                "regenerate-message",
                message_id=answer,
                body=body or {},
                branch=branch,
            )
        )

    def _ask(self, request: Request) -> str:
        runtime, commands = self._owner.runtime, self._commands()
        if request.branch is not None:
            check_name(request.branch, "the branch")
        sent = runtime.link.call(commands.send(self.session_id, request))
        due = sent.due
        if sent.lost:
            due = runtime.link.call(commands.take_over(self.session_id))
        if due is not None:
            dispatch(self._app(), runtime.link, commands, due)
        return sent.reply

    def messages(self, branch: str | None = None) -> list[Message]:
        """The history as the snapshot has it, with the message that is being answered.

        Args:
            branch: the id of a branch, to have its messages instead.

        Raises:
            StreamNotFound: there is no such branch (any more).
        """
        if branch is not None:
            return self._branch(branch)
        state = self._state()
        if state.active is None:
            return state.history or []
        request = state.active.request
        history = state.history if request.branch is None else self._branch(request.branch)
        return with_taken(asked(history, request), state.taken)

    def branches(self) -> list[Branch]:
        """What edits and regenerates have left behind, the last one first.

        The last ``chat_keep_branches`` are kept. Read one with :meth:`messages`, go on with it
        by :meth:`send`, or by :meth:`fork` in a session of its own.
        """
        return self._owner.runtime.link.call(self._commands().branches(self.session_id))

    def stop(self, answer: str | None = None) -> bool:
        """Ask the active turn to stop; ``False`` if there is none.

        Args:
            answer: the turn that is meant, by the id of its response message (what :meth:`send`
                returns), or by ``self.chat.turn_id``. When it is over or has not begun, nothing is
                stopped. Without it, whichever turn is active is stopped.
        """
        call = self._commands().stop(self.session_id, answer or "")
        return self._owner.runtime.link.call(call)[0]

    def fork(
        self, session_id: str, *, through: str | None = None, branch: str | None = None
    ) -> Session:
        """A new session with this one's history, up to the message with the id ``through``.

        With ``branch``, that one's messages instead of the history.

        Raises:
            ConfigurationError: there is no such message, or the new session has a history.
            StreamNotFound: there is no such branch (any more).
        """
        messages = self.messages(branch)
        if through is not None:
            ids = [message["id"] for message in messages]
            if through not in ids:
                raise ConfigurationError(
                    f"session {self.session_id} has no message {through!a} to fork after"
                )
            messages = messages[: ids.index(through) + 1]
        forked = Session(self._owner, session_id)
        if not self._owner.runtime.link.call(self._commands().plant(session_id, messages)):
            raise ConfigurationError(f"session {session_id} exists; fork into a new one")
        return forked

    def token(self, ttl: float = 3600.0) -> str:
        """An access token for a page with this chat: to send, to stop, and to read."""
        return self._owner.token(
            [scope("write", "sessions", self.session_id, "in"),
             scope("read", "sessions", self.session_id)],
            ttl,
        )  # fmt: skip

    def _branch(self, branch_id: str) -> list[Message]:
        check_name(branch_id, "the branch")
        call = self._commands().branch(self.session_id, branch_id)
        messages = self._owner.runtime.link.call(call)
        if messages is None:
            raise StreamNotFound(
                f"session {self.session_id} has no branch {branch_id!a} (any more)"
            )
        return messages

    def _commands(self) -> TurnCommands:
        runtime = self._owner.runtime
        return TurnCommands(runtime.layout, runtime.settings)

    def _state(self) -> SessionState:
        return self._owner.runtime.link.call(self._commands().look(self.session_id))

    def _app(self) -> Celery:
        app = self._owner.app
        if app is None:
            raise ConfigurationError("this Streams is attached to no Celery app to send tasks with")
        return app

    def _agent(self, given: Any) -> str:
        if given is not None:
            return str(getattr(given, "name", given))
        last = self._owner.runtime.link.call(self._commands().agent(self.session_id))
        if last is not None:
            return last
        names = [name for name, task in self._app().tasks.items() if isinstance(task, ChatAgent)]
        if len(names) == 1:
            return str(names[0])
        raise ConfigurationError(
            f"session {self.session_id} is new and the app has {len(names)} chat agents here; "
            "say which one: send(message, agent=...)"
        )
