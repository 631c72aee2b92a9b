"""The chat's four requests: send, resume, stop, and the messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic_core import to_json

from celery_streams.chat.dispatch import publish
from celery_streams.chat.history import asked, with_taken
from celery_streams.chat.turns import Dispatch, SessionState, TurnCommands
from celery_streams.errors import (
    InvalidName,
    OffsetGone,
    StoreUnavailable,
    StreamClosed,
    TooManyMessages,
)
from celery_streams.gateway import wire
from celery_streams.gateway.auth import ConnectionLimit, Gate
from celery_streams.gateway.chat.answers import Answer, as_events
from celery_streams.gateway.chat.bodies import parse_body
from celery_streams.gateway.chat.durable import AnswerStream, address, parse_reading
from celery_streams.gateway.chat.following import SessionFeed
from celery_streams.gateway.limits import ClientGone, content_length, read_body
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import CUT_OFF, Receive, Replies, Scope, Send
from celery_streams.gateway.requests import query_of
from celery_streams.redis.client import AsyncRedisLink
from celery_streams.redis.failures import REDIS_ERRORS
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.tokens import Access, resource_of

logger = logging.getLogger("celery_streams.gateway")

CHAT_ROOT = "/chat/"
#: Below an agent: the same requests, answered with the address of a Durable Stream.
_DURABLE = "durable"

#: The end of every complete stream.
_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-vercel-ai-ui-message-stream": "v1",
    "x-accel-buffering": "no",
}
#: Seconds that a client has to take a part of the answer.
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoint works with."""

    agents: Mapping[str, str]
    app: Celery | None
    link: AsyncRedisLink
    commands: TurnCommands
    feed: SessionFeed


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request. ``durable``: it wants to be told where the answer is a Durable Stream."""

    scope: Scope
    receive: Receive
    send: Send
    access: Access
    agent: str
    durable: bool


class ChatEndpoint:
    """Answers requests below ``/chat/``."""

    def __init__(
        self, parts: Parts, gate: Gate, replies: Replies, settings: StreamsSettings
    ) -> None:
        self._agents = parts.agents
        self._app = parts.app
        self._link = parts.link
        self._commands = parts.commands
        self._feed = parts.feed
        self._gate = gate
        self._replies = replies
        self._settings = settings
        self._limit = ConnectionLimit(settings.gateway_connections_per_token)
        self._durable = AnswerStream(replies, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer a request for ``path``, relative to the root."""
        access = self._gate.access(scope)
        agent, _, rest = path.partition("/")
        task = self._agents.get(agent)
        if task is None:
            raise Problem(404, "no-such-agent", "there is no chat agent of this name here")
        durable = rest == _DURABLE or (rest.startswith(f"{_DURABLE}/") and rest.count("/") == 2)
        if durable:
            rest = rest[len(_DURABLE) + 1 :]
        asked = _Asked(scope, receive, send, access, agent, durable)
        if not rest:
            _only(scope, "POST")
            await self._send(asked, task)
        else:
            await self._in_session(asked, rest)

    async def _send(self, asked: _Asked, task: str) -> None:
        scope, receive, access = asked.scope, asked.receive, asked.access
        if asked.durable:
            accepted = await self._accept(scope, receive, access, task)
            await self._refer(asked, 201, *accepted)
            return
        with self._limit.held(access):  # before the message is taken, not after
            accepted = await self._accept(scope, receive, access, task)
            await self._stream(asked, *accepted)

    async def _in_session(self, asked: _Asked, path: str) -> None:
        scope, send, access = asked.scope, asked.send, asked.access
        name, _, what = path.partition("/")
        session_id = _session(name)
        match what:
            case "stream":
                _only(scope, "GET")
                await self._resume(asked, session_id)
            case "answer" if not asked.durable:
                _only(scope, "GET", "HEAD")
                await self._answer(asked, session_id)
            case "stop" if not asked.durable:
                _only(scope, "POST")
                await self._stop(scope, send, access, session_id)
            case "messages" if not asked.durable:
                _only(scope, "GET", "HEAD")
                await self._messages(scope, send, access, session_id)
            case "branches" if not asked.durable:
                _only(scope, "GET", "HEAD")
                await self._branches(scope, send, access, session_id)
            case _ if what.startswith("branches/") and not asked.durable:
                _only(scope, "GET", "HEAD")
                branch_id = what.removeprefix("branches/")
                await self._branch(scope, send, access, session_id, branch_id)
            case _:
                raise Problem(404, "not-found", "there is nothing at this path")

    async def _resume(self, asked: _Asked, session_id: str) -> None:
        self._require(asked.access, "read", Slot.session(session_id, "out"))
        active = (await self._look(session_id)).active
        if active is None:
            nothing = {"cache-control": "no-store"}
            await self._replies.reply(asked.scope, asked.send, 204, nothing)
        elif asked.durable:
            await self._refer(asked, 200, session_id, active.reply, active.start)
        else:
            with self._limit.held(asked.access):
                await self._stream(asked, session_id, active.reply, active.start)

    def drain(self) -> None:
        """End what is being streamed."""
        self._feed.drain()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._feed.aclose()
        await self._link.close()

    async def _accept(
        self, scope: Scope, receive: Receive, access: Access, task: str
    ) -> tuple[str, str, int]:
        """Take a message: its session, the answer's id, and where in ``out`` to look for it."""
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        media = wire.media_type(headers.get("content-type", b"").decode("latin-1"))
        if media != "application/json":
            raise Problem(415, "unsupported-media-type", "send application/json")
        body = await read_body(receive, self._settings, content_length(scope["headers"]))
        session_id, request = parse_body(body, task)
        self._require(access, "write", Slot.session(session_id, "in"))
        self._require(access, "read", Slot.session(session_id, "out"))
        size, most = len(request.pack()), self._settings.max_chunk_bytes
        if size > most:
            raise Problem(
                413, "message-too-large", f"the message has {size} bytes; the limit is {most}"
            )
        try:
            sent = await self._link.call(self._commands.send(session_id, request))
        except TooManyMessages as error:
            raise Problem(
                429, "too-many-messages", str(error), headers={"Retry-After": "5"}
            ) from None
        except StreamClosed as error:
            raise Problem(409, "session-ended", str(error)) from None
        if sent.due is not None:
            await self._dispatch(sent.due)
        if sent.lost:
            await self._take_over(session_id)
        return session_id, sent.reply, sent.offset

    async def _refer(
        self, asked: _Asked, status: int, session_id: str, reply: str, offset: int
    ) -> None:
        """Say where the answer is as a Durable Stream."""
        scope, agent = asked.scope, asked.agent
        out = resource_of(Slot.session(session_id, "out"))
        query = address(reply, offset, self._gate.token_for_url(scope, asked.access, out))
        path = f"{scope.get('root_path', '')}{CHAT_ROOT}{quote(agent)}/{quote(session_id)}/answer"
        location = {"location": f"{path}?{query}"}
        document = {"streamUrl": location["location"]}
        await self._document(scope, asked.send, status, document, location)

    async def _answer(self, asked: _Asked, session_id: str) -> None:
        slot = Slot.session(session_id, "out")
        self._require(asked.access, "read", slot)

        async def look() -> SessionState:
            return await self._look(session_id)

        def follow(reply: str, start: int, given: int) -> Answer:
            return Answer(self._feed, slot, reply, start, look, given=given)

        async def watched(answering: Coroutine[Any, Any, None]) -> None:
            await _while_there(asked.receive, answering)

        reading = parse_reading(asked.scope)
        with self._limit.held(asked.access) if reading.live else nullcontext():
            await self._durable.read(asked.scope, asked.send, reading, follow, watched)

    async def _stop(self, scope: Scope, send: Send, access: Access, session_id: str) -> None:
        self._require(access, "write", Slot.session(session_id, "in"))
        name = query_of(scope).get("message", "")
        stopping, lost = await self._link.call(self._commands.stop(session_id, name))
        if lost:
            await self._take_over(session_id)
        await self._document(scope, send, 202 if stopping else 200, {"stopping": stopping})

    async def _messages(self, scope: Scope, send: Send, access: Access, session_id: str) -> None:
        self._require(access, "read", Slot.session(session_id, "out"))
        state = await self._link.call(self._commands.look(session_id))
        messages = state.history or []
        if state.active is not None:
            request = state.active.request
            if request.branch is not None:
                call = self._commands.branch(session_id, request.branch)
                branch = await self._link.call(call)
                messages = messages if branch is None else branch
            messages = with_taken(asked(messages, request), state.taken)
        document = {
            "id": session_id,
            "messages": messages,
            "active": state.active is not None,
            "pending": [each.message for each in state.pending if each.message is not None],
        }
        await self._document(scope, send, 200, document)

    async def _branches(self, scope: Scope, send: Send, access: Access, session_id: str) -> None:
        self._require(access, "read", Slot.session(session_id, "out"))
        branches = await self._link.call(self._commands.branches(session_id))
        document = {"id": session_id, "branches": [each.document() for each in branches]}
        await self._document(scope, send, 200, document)

    async def _branch(
        self, scope: Scope, send: Send, access: Access, session_id: str, branch_id: str
    ) -> None:
        self._require(access, "read", Slot.session(session_id, "out"))
        messages = None
        if "/" not in branch_id:
            messages = await self._link.call(self._commands.branch(session_id, branch_id))
        if messages is None:
            raise Problem(404, "no-such-branch", "the session has no branch of this id (any more)")
        await self._document(scope, send, 200, {"id": branch_id, "messages": messages})

    async def _stream(self, asked: _Asked, session_id: str, reply: str, offset: int) -> None:
        """The UI message stream of one answer. One that breaks off breaks the connection: the
        AI SDK takes any other end for the answer's."""

        async def look() -> SessionState:
            return await self._look(session_id)

        slot = Slot.session(session_id, "out")
        answer = Answer(self._feed, slot, reply, offset, look)
        scope, send = asked.scope, asked.send
        await self._replies.start(scope, send, 200, _STREAM_HEADERS)
        await _while_there(asked.receive, _pass_on(answer, send))
        if answer.complete:
            with suppress(OSError):
                await send({"type": "http.response.body", "body": _DONE, "more_body": False})
        elif cut_off := scope.get(CUT_OFF):
            cut_off()

    async def _look(self, session_id: str) -> SessionState:
        """The session's state; a turn whose worker is lost is sent again."""
        state = await self._link.call(self._commands.look(session_id))
        if state.active is not None and state.active.lost:
            with suppress(Problem):  # whoever looks next tries again
                await self._take_over(session_id)
        return state

    async def _take_over(self, session_id: str) -> None:
        due = await self._link.call(self._commands.take_over(session_id))
        if due is not None:
            logger.warning(
                "session %s: its turn's worker or message is lost, sent it again", session_id
            )
            await self._dispatch(due)

    async def _dispatch(self, due: Dispatch) -> None:
        if self._app is None:
            raise Problem(503, "no-broker", "this gateway has no Celery app to send tasks with")
        try:
            await asyncio.to_thread(publish, self._app, due)
        except (OperationalError, OSError, *REDIS_ERRORS) as error:  # of the result backend, too
            logger.warning("could not send the turn of session %s: %s", due.session_id, error)
            raise Problem(
                503, "broker-unavailable", "the broker cannot be reached; try again soon",
                headers={"retry-after": "10"},
            ) from None  # fmt: skip
        with suppress(StoreUnavailable):  # then it may be sent twice, and answered once
            await self._link.call(self._commands.sent(due))

    async def _document(
        self,
        scope: Scope,
        send: Send,
        status: int,
        document: Any,
        more: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"content-type": "application/json", "cache-control": "no-store", **(more or {})}
        # What load_messages, or a caller of send(), has put there may hold NaN.
        body = to_json(document, inf_nan_mode="null")
        await self._replies.reply(scope, send, status, headers, body)

    def _require(self, access: Access, action: Any, slot: Slot) -> None:
        if not access.allows(action, resource_of(slot)):
            raise self._gate.refusal(f"{action}:{quote(resource_of(slot), safe='/-._~')}")


async def _pass_on(answer: Answer, send: Send) -> None:
    """Send the answer, for as long as the client takes it."""
    with suppress(OffsetGone, TimeoutError):
        async with aclosing(answer.pieces()) as pieces:
            async for chunks in pieces:
                body = as_events(chunks) if chunks else wire.HEARTBEAT
                async with asyncio.timeout(_PATIENCE):
                    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _while_there(receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
    """Answer for as long as the client is there. The turn goes on."""
    sending = asyncio.create_task(answering)
    watch = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((sending, watch), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
    finally:
        watch.cancel()
        sending.cancel()
        with suppress(BaseException):
            await sending


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    with suppress(ClientGone):
        while (await receive())["type"] != "http.disconnect":
            pass


def _session(session_id: str) -> str:
    try:
        return Slot.session(session_id).owner
    except InvalidName as error:
        raise Problem(400, "invalid-path", str(error)) from None


def _only(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise Problem(
            405, "method-not-allowed", f"there is no {scope['method']} here",
            headers={"allow": ", ".join(methods)},
        )  # fmt: skip
