"""The streams' URLs: one method of the protocol each, except for the reads that wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote, unquote

from celery_streams.contracts import JSON, Head
from celery_streams.errors import (
    ChunkTooLarge,
    OffsetGone,
    RunFinished,
    StoreUnavailable,
    StreamNotFound,
)
from celery_streams.gateway import wire
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.hub import Hub
from celery_streams.gateway.limits import content_length, read_body
from celery_streams.gateway.live import LiveReads, Position, check_offset
from celery_streams.gateway.minting import Minting
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Receive, Replies, Scope, Send
from celery_streams.gateway.requests import headers_of, parse_creation, parse_post, query_of
from celery_streams.gateway.run_states import run_state
from celery_streams.gateway.targets import STREAM_ROOT, Target, parse_reference, parse_target
from celery_streams.gateway.topics import look
from celery_streams.protocol import (
    AlreadyClosed,
    BadEpoch,
    BadFork,
    ProducerFenced,
    ProducerGap,
    ProtocolStore,
    Refusal,
    StreamDeleted,
)
from celery_streams.settings import StreamsSettings
from celery_streams.tokens import Access, Action

#: Entries of one page; its bytes are bounded by the store.
_PAGE = 4096
#: For what never changes; private, because whoever may read it may not be whoever asks next.
_SETTLED = "private, max-age=60, stale-while-revalidate=300"

_ACTIONS: dict[str, Action] = {
    "GET": "read",
    "HEAD": "read",
    "PUT": "write",
    "POST": "write",
    "DELETE": "write",
}


#: Called with the path of a stream, and where the chunks begin and end that were appended.
Appended = Callable[[str, int, int], Awaitable[None]]


class StreamEndpoint:
    """Everything below ``/v1/stream/`` that is a stream."""

    def __init__(
        self,
        store: ProtocolStore,
        hub: Hub,
        gate: Gate,
        replies: Replies,
        settings: StreamsSettings,
        appended: Appended | None = None,
        minting: Minting | None = None,
    ) -> None:
        self._store = store
        self._appended = appended
        self._minting = minting
        self._gate = gate
        self._replies = replies
        self._settings = settings
        self._limits = wire.Limits(settings.max_chunk_bytes, settings.gateway_max_messages)
        self._hub = hub
        self._live = LiveReads(hub, replies, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer a request for the stream at ``path``, relative to the stream root."""
        method = scope["method"]
        target = parse_target(path)
        action = _ACTIONS.get(method)
        if action is None:
            raise Problem(
                405, "method-not-allowed", f"a stream knows no {method}",
                headers={"allow": ", ".join(_ACTIONS)},
            )  # fmt: skip
        access = self._gate.access(scope)
        if method == "DELETE" and target.awaited:
            action = "admin"  # what a task writes is not a client's to delete
        self._gate.require(access, action, target.resource)
        try:
            match method:
                case "GET":
                    await self._get(scope, receive, send, target, access)
                case "HEAD":
                    await self._head(scope, send, target)
                case "PUT":
                    await self._put(scope, receive, send, target)
                case "POST":
                    await self._post(scope, receive, send, target)
                case _:
                    await self._delete(scope, send, target)
        except StoreUnavailable:
            raise
        except (Refusal, StreamNotFound, OffsetGone, RunFinished, ChunkTooLarge) as error:
            raise as_problem(error) from error

    # Reads

    async def _get(
        self, scope: Scope, receive: Receive, send: Send, target: Target, access: Access
    ) -> None:
        query = query_of(scope)
        live, offset = query.get("live"), query.get("offset")
        if live is None:
            await self._catch_up(scope, send, target, wire.parse_offset(offset or "-1"))
            return
        if live not in ("sse", "long-poll"):
            raise Problem(400, "invalid-live", "live is 'sse' or 'long-poll'")
        resumed = headers_of(scope).get("last-event-id") if live == "sse" else None
        if offset is None and resumed is None:
            raise Problem(400, "missing-offset", "a live read needs an offset")
        told = False
        if resumed:
            begin, told = wire.parse_event_id(resumed)
        else:
            begin = wire.parse_offset(offset or "-1")
        position = Position(target, begin, query.get("cursor"), access, told)
        read = self._live.sse if live == "sse" else self._live.long_poll
        await read(scope, receive, send, position)

    async def _catch_up(self, scope: Scope, send: Send, target: Target, offset: int | str) -> None:
        if isinstance(offset, str):
            page = await look(self._store, target.slot)
            offset = page.head.end if page.head else 0
            headers = {"cache-control": "no-store"}
        else:
            page = await self._store.read(target.slot, offset, limit=_PAGE)
            headers = {}
        head = page.head
        if head is None:
            head = await self._live.missing(target, offset, page.run_state)
        check_offset(offset, head)
        if head.ttl is not None:
            await self._store.touch(target.slot, head.ttl)
        end = page.entries[-1].end if page.entries else offset
        at_tail = end >= head.end
        headers = {**described(head, end, at_tail=at_tail), **headers}
        if "cache-control" not in headers:
            etag = _etag(head, offset, end, at_tail=at_tail)
            headers["etag"] = etag
            # What is not the tail never changes. The tail may have grown since.
            headers["cache-control"] = (
                "private, no-cache"
                if at_tail
                else "private, max-age=60, stale-while-revalidate=300"
            )
            if _matches(headers_of(scope).get("if-none-match"), etag):
                await self._replies.reply(scope, send, 304, headers)
                return
        payloads = wire.payloads_from(page.entries, offset, head.content_type)
        pieces = wire.pieces_of(payloads, head.content_type)
        await self._replies.reply_in_pieces(scope, send, 200, headers, pieces)

    async def _head(self, scope: Scope, send: Send, target: Target) -> None:
        page = await look(self._store, target.slot)
        head = page.head or await self._live.missing(target, 0, page.run_state)
        headers = described(head, head.end, at_tail=True)
        headers.pop("stream-up-to-date", None)
        if head.ttl is not None:
            headers["stream-ttl"] = str(head.ttl)
        if head.expires_at is not None:
            headers["stream-expires-at"] = head.expires_at
        await self._replies.reply(scope, send, 200, {**headers, "cache-control": "no-store"})

    # Writes

    async def _put(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        body = await self._body(scope, receive)
        headers = headers_of(scope)
        if self._minting is not None and self._minting.asked(headers):
            await self._minting(scope, send, target, headers)
            return
        root = scope.get("root_path", "")

        def source(reference: str) -> Target:
            found = parse_reference(reference, root)
            self._gate.require(self._gate.access(scope), "read", found.resource)
            return found

        creation = parse_creation(headers, body, target, self._limits, source)
        self._may_close(scope, target, closes=creation.closed)
        created, head = await self._store.create(target.slot, creation)
        if created and creation.chunks and self._appended is not None:
            await self._appended(str(target.slot), head.end - len(creation.chunks), head.end)
        answer = {
            "content-type": head.content_type,
            "stream-next-offset": wire.offset_token(head.end),
            "cache-control": "no-store",
        }
        if head.closed is not None:
            answer["stream-closed"] = "true"
        if created:
            host = headers.get("host", "")
            location = f"{root}{STREAM_ROOT}{quote(target.path)}"
            answer["location"] = f"{scope['scheme']}://{host}{location}" if host else location
        await self._replies.reply(scope, send, 201 if created else 200, answer)

    async def _post(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        body = await self._body(scope, receive)
        post = parse_post(headers_of(scope), body, self._limits)
        self._may_close(scope, target, closes=post.close)
        if post.close:
            await self._hub.over(target.slot)  # streams of a run that has ended, end as it did
        posted = await self._store.post(target.slot, post)
        if post.chunks and not posted.duplicate and self._appended is not None:
            await self._appended(str(target.slot), posted.end - len(post.chunks), posted.end)
        headers = {"stream-next-offset": wire.offset_token(posted.end), "cache-control": "no-store"}
        if posted.closed:
            headers["stream-closed"] = "true"
        if post.producer is not None:
            headers["producer-epoch"] = str(post.producer.epoch)
            headers["producer-seq"] = str(posted.producer_seq)
        new = post.producer is not None and not posted.duplicate and bool(post.chunks)
        await self._replies.reply(scope, send, 200 if new else 204, headers)

    async def _delete(self, scope: Scope, send: Send, target: Target) -> None:
        await self._store.remove(target.slot)
        await self._replies.reply(scope, send, 204, {"cache-control": "no-store"})

    def _may_close(self, scope: Scope, target: Target, *, closes: bool) -> None:
        """A run's end is its own to say, a session's its application's."""
        if closes and target.awaited:
            self._gate.require(self._gate.access(scope), "admin", target.resource)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(receive, self._settings, content_length(scope["headers"]))


def described(head: Head, end: int, *, at_tail: bool) -> dict[str, str]:
    """The headers of an answer that brings a reader to ``end``."""
    headers = {
        "content-type": head.content_type or JSON,
        "stream-next-offset": wire.offset_token(end),
    }
    if at_tail:
        headers["stream-up-to-date"] = "true"
        if head.closed is not None:
            headers["stream-closed"] = "true"
    state = run_state(head.slot, head)
    if state is not None:
        headers["stream-run-state"] = state
    return headers


def as_problem(error: Exception) -> Problem:
    """The problem a store's refusal is to an HTTP client."""
    text = str(error)
    match error:
        case StreamDeleted():
            return Problem(410, "deleted", text)
        case OffsetGone():
            headers = {"stream-earliest-offset": wire.offset_token(error.first)}
            return Problem(410, "offset-gone", text, headers=headers)
        case StreamNotFound():
            return Problem(404, "not-found", text)
        case AlreadyClosed():
            headers = {
                "stream-closed": "true",
                "stream-next-offset": wire.offset_token(error.end),
            }
            return Problem(409, "closed", text, headers=headers)
        case ProducerFenced():
            return Problem(403, "stale-epoch", text, headers={"producer-epoch": str(error.epoch)})
        case ProducerGap():
            headers = {
                "producer-expected-seq": str(error.expected),
                "producer-received-seq": str(error.received),
            }
            return Problem(409, "sequence-gap", text, headers=headers)
        case ChunkTooLarge():
            return Problem(413, "too-large", text)
        case BadFork():
            return Problem(400, "invalid-fork", text)
        case BadEpoch():
            return Problem(400, "invalid-epoch", text)
    return Problem(409, "conflict", text)


def _etag(head: Head, start: int, end: int, *, at_tail: bool) -> str:
    ended = ":c" if at_tail and head.closed is not None else ""
    identity = head.identity or quote(f"{head.slot.scope}-{unquote(head.slot.owner)}", safe="")
    return f'"{identity}:{start}:{end}{ended}"'


def _matches(given: str | None, etag: str) -> bool:
    if given is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or "*" in tags
