"""The session's turn in Redis: calls, built and their replies read without I/O.

What each does, atomically, is written in the ``.lua`` file of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from celery_streams.chat.branches import Branch, Left
from celery_streams.chat.requests import Message, Request, new_id
from celery_streams.errors import StreamClosed, StreamError, TooManyMessages, TurnBusy
from celery_streams.redis.calls import Call
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import Script, load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

#: The writing run that all turns of a session are to the fence of its ``out``.
WRITER = "chat"
#: Milliseconds between a turn's start and its message in the broker, at most.
_HANDOFF = 10_000
#: Milliseconds a message may wait in the broker before it is sent again: at first, and at most.
_QUEUED, _LONG_QUEUED = 10_000, 3600_000
#: What a session has beside its streams.
_KEPT = ("turn", "pending", "taken", "history", "starts", "branches", "branch", "answered")
#: Milliseconds until a turn that waits for its retry is sent again.
_SUSPENDED = 6 * 3600_000


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A Celery message that is due: ``task_id`` runs ``request`` in the session."""

    session_id: str
    task_id: str
    request: Request


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a request: its answer follows offset ``offset`` of ``out``, as ``reply``.

    ``due`` has to be sent; ``lost``: the active turn's worker is gone.
    """

    reply: str
    offset: int
    queued: bool = False
    lost: bool = False
    due: Dispatch | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt of a turn."""

    turn_id: str
    reply: str
    number: int
    epoch: int
    stop: bool
    request: Request
    history: list[Message] | None
    taken: list[Request]


@dataclass(frozen=True, slots=True)
class ActiveTurn:
    """The turn that a session is in. ``lost``: its worker gives no sign of life, or its message is
    due again."""

    turn_id: str
    task_id: str
    agent: str
    reply: str
    start: int
    request: Request
    lost: bool
    attempts: int
    #: How often its message was sent again.
    resent: int


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session at one moment."""

    active: ActiveTurn | None
    history: list[Message] | None
    pending: list[Request] = field(default_factory=list)
    taken: list[Request] = field(default_factory=list)


class TurnCommands:
    """Builds the calls of one configuration. Stateless, shareable."""

    def __init__(self, layout: Layout, settings: StreamsSettings) -> None:
        self._layout = layout
        self._retention = max(1, round(settings.retention * 1000))
        self._lease = max(1, round(settings.orphan_timeout * 1000))
        self._most = settings.chat_max_pending
        self._kept = settings.chat_keep_turns
        self._branches = settings.chat_keep_branches

    def stop_channel(self, session_id: str) -> str:
        """The channel of requests to stop."""
        return self._layout.chat(Slot.session(session_id), "stop")

    def send(self, session_id: str, request: Request) -> Call[Sent]:
        """Start a turn or wait for one. Raises StreamClosed, TooManyMessages."""
        inbox, out = _slots(session_id)
        task_id = new_id("turn")

        def parse(reply: list[Any]) -> Sent:
            match reply:
                case [b"STARTED", int(offset)]:
                    due = Dispatch(session_id, task_id, request)
                    return Sent(request.reply, offset, due=due)
                case [b"QUEUED", int(offset), lost]:
                    return Sent(request.reply, offset, queued=True, lost=bool(lost))
                case [b"KNOWN", int(offset), known, lost]:
                    return Sent(known.decode(), offset, queued=True, lost=bool(lost))
                case [b"FULL"]:
                    raise TooManyMessages(
                        f"session {session_id} has {self._most} messages waiting already "
                        "(CELERY_STREAMS_CHAT_MAX_PENDING); wait for an answer"
                    )
                case [b"CLOSED"]:
                    raise StreamClosed(f"the inbox of session {session_id} has ended")
            raise _unexpected("send", reply)

        return Call(
            _script("send"),
            (
                *self._chat(session_id, "turn", "pending", "taken", "answered"),
                self._layout.meta(inbox),
                self._layout.log(inbox),
                self._layout.keys(inbox),
                self._layout.meta(out),
            ),
            (
                request.pack(),
                self._layout.live(inbox),
                new_id("turn"),
                task_id,
                _HANDOFF,
                self._retention,
                self._most,
            ),
            parse,
        )

    def sent(self, due: Dispatch) -> Call[bool]:
        """The broker has the message."""
        keys = self._chat(due.session_id, "turn")
        return Call(_script("sent"), keys, (due.task_id, _QUEUED, _LONG_QUEUED), bool)

    def begin(
        self, session_id: str, task_id: str, attempt_id: str, *, first: bool, direct: Request | None
    ) -> Call[Begun | None]:
        """Begin an attempt; ``None``: the turn is not this task's (any more).

        Raises:
            TurnBusy: the task was called directly, and another turn is active.
        """

        def parse(reply: list[Any]) -> Begun | None:
            match reply:
                case [b"OK", turn, name, int(number), int(epoch), stop, request, history, taken]:
                    return Begun(
                        turn.decode(),
                        name.decode(),
                        number,
                        epoch,
                        bool(stop),
                        Request.parse(request),
                        None if history is None else from_json(history),
                        [Request.parse(each) for each in taken],
                    )
                case [b"STALE"]:
                    return None
                case [b"BUSY", _]:
                    raise TurnBusy(
                        f"session {session_id} is in a turn already, and turns never overlap; "
                        "send messages with streams.session(id).send(...), which waits its turn"
                    )
            raise _unexpected("begin", reply)

        out = Slot.session(session_id, "out")
        return Call(
            _script("begin"),
            (
                *self._chat(session_id, "turn", "taken", "history", "answered"),
                *self._stream(out),
                self._layout.fence(out, WRITER),
            ),
            (
                task_id,
                attempt_id,
                int(first),
                self._layout.live(out),
                self._lease,
                self._retention,
                direct.pack() if direct else b"",
                new_id("turn"),
            ),
            parse,
        )

    def renew(self, session_id: str, attempt_id: str, *, ask: bool = False) -> Call[list[int]]:
        """Show life (or only ``ask``): is the turn the attempt's, and is it to stop?"""
        inbox, out = _slots(session_id)
        keys = (
            *self._chat(session_id, *_KEPT),
            self._layout.meta(inbox),
            self._layout.log(inbox),
            *self._stream(out),
        )
        return Call(
            _script("renew"), keys, (attempt_id, 0 if ask else self._lease, self._retention), list
        )

    def suspend(self, session_id: str, attempt_id: str) -> Call[bool]:
        """The turn goes on with another message."""
        keys = self._chat(session_id, "turn")
        return Call(_script("suspend"), keys, (attempt_id, _SUSPENDED), bool)

    def stop(self, session_id: str, name: str = "") -> Call[tuple[bool, bool]]:
        """Ask the active turn to stop (if it is ``name``): is there one, and is its worker lost?"""
        return Call(
            _script("stop"),
            self._chat(session_id, "turn"),
            (self.stop_channel(session_id), name),
            lambda reply: (reply[0] is not None, bool(reply[1])),
        )

    def finish(
        self,
        session_id: str,
        task_id: str,
        attempt_id: str,
        messages: list[Message],
        chunks: Sequence[bytes],
        left: Left,
    ) -> Call[tuple[bool, Dispatch | None]]:
        """End the turn: was it this attempt's, and which message is due then?"""
        next_task = new_id("turn")

        def parse(reply: list[Any]) -> tuple[bool, Dispatch | None]:
            match reply:
                case [b"OK"]:
                    return True, None
                case [b"NEXT", request]:
                    return True, Dispatch(session_id, next_task, Request.parse(request))
                case [b"LOST"]:
                    return False, None
            raise _unexpected("finish", reply)

        out = Slot.session(session_id, "out")
        keeps = bool(left.messages) and self._branches > 0
        return Call(
            _script("finish"),
            (
                *self._chat(session_id, *_KEPT),
                *self._stream(out),
            ),
            (
                task_id,
                attempt_id,
                self._layout.live(out),
                to_json(messages),
                len(chunks),
                b"\n".join(chunks),
                new_id("turn"),
                next_task,
                _HANDOFF,
                self._retention,
                self._kept,
                to_json(left.messages) if keeps else b"",
                to_json(left.about) if keeps else b"",
                left.continued or "",
                self._branches,
            ),
            parse,
        )

    def take_over(self, session_id: str) -> Call[Dispatch | None]:
        """Send a turn again whose lease has run out: its worker, or its message, is lost."""

        def parse(reply: list[bytes] | None) -> Dispatch | None:
            if reply is None:
                return None
            task_id, request = reply
            return Dispatch(session_id, task_id.decode(), Request.parse(request))

        keys = self._chat(session_id, "turn")
        return Call(_script("take_over"), keys, (new_id("turn"), _HANDOFF), parse)

    def take(self, session_id: str, attempt_id: str) -> Call[list[Request]]:
        """Read what is pending into the running turn: all that it has read so far."""
        out = Slot.session(session_id, "out")
        return Call(
            _script("take"),
            (*self._chat(session_id, "turn", "pending", "taken"), *self._stream(out)),
            (attempt_id, self._layout.live(out), self._retention),
            lambda reply: [Request.parse(each) for each in reply or ()],
        )

    def agent(self, session_id: str) -> Call[str | None]:
        """The agent of the session's last turn."""
        return Call(
            "HGET",
            self._chat(session_id, "turn"),
            ("agent",),
            lambda reply: None if reply is None else reply.decode(),
        )

    def plant(self, session_id: str, messages: list[Message]) -> Call[bool]:
        """Give a session a history, if it has none."""
        keys = self._chat(session_id, "history")
        return Call("SET", keys, (to_json(messages), "NX", "PX", self._retention), bool)

    def branches(self, session_id: str) -> Call[list[Branch]]:
        """The session's branches, the last one first."""

        def parse(reply: list[Any]) -> list[Branch]:
            return [
                Branch.parse(name.decode(), float(left_at), from_json(about))
                for name, left_at, about in reply
            ]

        return Call(_script("branches"), self._chat(session_id, "branches", "branch"), (), parse)

    def branch(self, session_id: str, branch_id: str) -> Call[list[Message] | None]:
        """The messages of a branch; ``None``: there is none of this id (any more)."""
        return Call(
            "HGET",
            self._chat(session_id, "branch"),
            (branch_id,),
            lambda reply: None if reply is None else from_json(reply),
        )

    def look(self, session_id: str) -> Call[SessionState]:
        """The session now."""
        keys = self._chat(session_id, "turn", "pending", "taken", "history")
        return Call(_script("look"), keys, (), _state)

    def _chat(self, session_id: str, *what: str) -> tuple[str, ...]:
        slot = Slot.session(session_id)
        return tuple(self._layout.chat(slot, each) for each in what)

    def _stream(self, slot: Slot) -> tuple[str, str, str]:
        return self._layout.meta(slot), self._layout.log(slot), self._layout.keys(slot)


def _slots(session_id: str) -> tuple[Slot, Slot]:
    return Slot.session(session_id, "in"), Slot.session(session_id, "out")


def _state(reply: list[Any]) -> SessionState:
    turn, task, agent, name, start, request, lost, history, pending, taken, number, resent = reply
    active = None
    if turn is not None:
        active = ActiveTurn(
            turn.decode(),
            task.decode(),
            agent.decode(),
            name.decode(),
            start,
            Request.parse(request),
            bool(lost),
            number,
            resent or 0,
        )
    return SessionState(
        active,
        None if history is None else from_json(history),
        [Request.parse(each) for each in pending],
        [Request.parse(each) for each in taken],
    )


def _script(name: str) -> Script:
    return load_script("celery_streams.chat", name)


def _unexpected(name: str, reply: object) -> StreamError:
    return StreamError(f"unexpected reply of the chat's script {name}: {reply!r}")
