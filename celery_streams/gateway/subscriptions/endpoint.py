"""The URLs below ``__ds/``: the protocol's control resources (PROTOCOL 6 and 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from celery_streams.errors import InvalidName, StreamError
from celery_streams.gateway import wire
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.limits import content_length, read_body
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Receive, Replies, Scope, Send
from celery_streams.gateway.subscriptions.outbound import WebhookRejected
from celery_streams.gateway.subscriptions.rights import may_follow
from celery_streams.gateway.subscriptions.running import Subscriptions
from celery_streams.gateway.subscriptions.waking import described
from celery_streams.gateway.targets import STREAM_ROOT
from celery_streams.settings import StreamsSettings
from celery_streams.stores.patterns import Pattern, slot_at
from celery_streams.subscriptions.commands import LINK_TYPES, Linked, Outcome, Record, Wake
from celery_streams.subscriptions.config import (
    Configuration,
    InvalidSubscription,
    check_id,
    parse_streams,
)
from celery_streams.subscriptions.keys import Use
from celery_streams.subscriptions.store import SubscriptionConflict, SubscriptionNotFound
from celery_streams.tokens import Access, resource_of

#: What a worker may call itself, characters.
_MAX_WORKER = 255
_MAX_ACKS = 10_000


class Refused(Exception):
    """A request that is refused in the protocol's form: ``{"error": {"code": ...}}``."""

    def __init__(self, status: int, code: str, message: str = "", **details: object) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        shown = {"message": message} if message else {}
        self.body = {"error": {"code": code, **shown, **details}}


class SubscriptionEndpoint:
    """Answers for everything below ``/v1/stream/__ds/``."""

    def __init__(
        self, subscriptions: Subscriptions, gate: Gate, replies: Replies, settings: StreamsSettings
    ) -> None:
        self._running = subscriptions
        self._store = subscriptions.store
        self._gate = gate
        self._replies = replies
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer a request; ``path`` is relative to ``__ds/``."""
        try:
            status, document = await self._answer(scope, receive, path.split("/"))
        except Refused as error:
            status, document = error.status, error.body
        except (InvalidSubscription, SubscriptionNotFound, SubscriptionConflict) as error:
            refused = _refused(error)
            status, document = refused.status, refused.body
        headers = {"cache-control": "no-store"}
        body = b""
        if isinstance(document, bytes):
            body = document
            headers = {
                "content-type": "application/jwk-set+json",
                "cache-control": "public, max-age=300",
            }
        elif document is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(document, ensure_ascii=False).encode()
        await self._replies.reply(scope, send, status, headers, body)

    async def _answer(
        self, scope: Scope, receive: Receive, segments: list[str]
    ) -> tuple[int, dict[str, Any] | bytes | None]:
        method = scope["method"]
        match segments:
            case ["jwks.json"]:
                _only(method, "GET", "HEAD")
                return 200, (await self._store.keys()).jwks()
            case ["subscriptions", name]:
                _only(method, "GET", "HEAD", "PUT", "DELETE")
                access = self._administer(scope, check_id(name))
                if method == "PUT":
                    return await self._put(scope, access, name, await self._body(scope, receive))
                if method == "DELETE":
                    await self._store.remove(name)
                    await self._running.registry.refresh()
                    return 204, None
                return 200, await self._shown(scope, name)
            case ["subscriptions", name, "streams"]:
                _only(method, "POST")
                access = self._administer(scope, check_id(name))
                body = await self._body(scope, receive)
                await self._add(access, name, body)
                return 204, None
            case ["subscriptions", name, "streams", *rest]:
                _only(method, "DELETE")
                self._administer(scope, check_id(name))
                await self._store.discard(name, parse_streams(["/".join(rest)])[0])
                await self._running.registry.refresh()
                return 204, None
            case ["subscriptions", name, "claim"]:
                _only(method, "POST")
                check_id(name)
                self._gate.require(self._gate.access(scope), "write", f"subscriptions/{name}")
                return await self._claim(name, await self._body(scope, receive))
            case ["subscriptions", name, "callback" | "ack" as what]:
                _only(method, "POST")
                wake = await self._bearer(
                    scope, name, "callback" if what == "callback" else "claim"
                )
                return await self._ack(wake, await self._body(scope, receive))
            case ["subscriptions", name, "release"]:
                _only(method, "POST")
                wake = await self._bearer(scope, name, "claim")
                return await self._release(wake, await self._body(scope, receive))
        raise Problem(404, "not-found", "there is no such control resource")

    # The subscription itself

    async def _put(
        self, scope: Scope, access: Access, name: str, document: object
    ) -> tuple[int, dict[str, Any]]:
        configuration = Configuration.parse(document)
        if configuration.pattern is not None:
            pattern = Pattern.parse(configuration.pattern)
            if not may_follow(access, pattern):
                raise Problem(
                    403, "forbidden",
                    f"the token does not allow to read every stream that {pattern} can match",
                )  # fmt: skip
        self._may_read(access, configuration.streams)
        if configuration.wake_stream is not None:
            self._gate.require(access, "write", f"streams/{configuration.wake_stream}")
        if configuration.task is not None:
            # Whoever may have a task executed may do whatever tasks do.
            self._gate.require(access, "admin", f"tasks/{configuration.task}")
        if configuration.url is not None:
            try:
                await self._running.outbound.check(configuration.url)
            except WebhookRejected as error:
                raise Refused(400, "WEBHOOK_URL_REJECTED", str(error)) from None
            except TimeoutError:
                raise Refused(
                    400, "WEBHOOK_URL_REJECTED", "the host's name could not be resolved in time"
                ) from None
        created = await self._store.create(name, configuration, _base(scope))
        await self._running.registry.refresh()
        return 201 if created else 200, await self._shown(scope, name)

    async def _shown(self, scope: Scope, name: str) -> dict[str, Any]:
        record = await self._store.record(name)
        links = {each.path: each async for page in self._store.links(name) for each in page}
        return {
            "id": name,
            "subscription_id": name,
            **await self._described(scope, record),
            "streams": [_shown_link(links[path]) for path in sorted(links)],
        }

    async def _described(self, scope: Scope, record: Record) -> dict[str, Any]:
        configuration = record.configuration
        shown: dict[str, Any] = {
            "type": configuration.type,
            "pattern": configuration.pattern,
            "webhook": None,
            "wake_stream": configuration.wake_stream,
            "lease_ttl_ms": configuration.lease_ttl_ms,
            "created_at": _timestamp(record.created_ms),
            "status": "failed" if record.failing else "active",
            "description": configuration.description,
            "generation": record.generation,
        }
        if configuration.type == "webhook":
            kid = (await self._store.keys()).kid
            signing = {"alg": "ed25519", "kid": kid, "jwks_url": f"{_base(scope)}jwks.json"}
            shown["webhook"] = {"url": configuration.url, "signing": signing}
        elif configuration.type == "celery":
            shown |= {"task": configuration.task, "queue": configuration.queue}
        if record.next_attempt_ms is not None:
            shown["next_attempt_at"] = _timestamp(record.next_attempt_ms)
        return shown

    async def _add(self, access: Access, name: str, document: object) -> None:
        paths = parse_streams(_field(document, "streams"))
        if not paths:
            raise InvalidSubscription("streams is a list of at least one path")
        self._may_read(access, paths)
        await self._store.add(name, paths)
        await self._running.registry.refresh()

    # Wakes

    async def _claim(self, name: str, document: object) -> tuple[int, dict[str, Any]]:
        worker = _field(document, "worker")
        if not isinstance(worker, str) or not 0 < len(worker) <= _MAX_WORKER:
            raise InvalidSubscription(f"worker is a name of 1 to {_MAX_WORKER} characters")
        # What was appended until now counts, whether or not anybody has noticed it yet.
        await self._store.refresh(name)
        commands = self._store.commands
        claimed = await self._store.link.call(commands.claim(name, worker, "pull-wake"))
        match claimed.verdict:
            case "MISSING":
                raise SubscriptionNotFound(f"there is no subscription {name!r}")
            case "TYPE":
                raise InvalidSubscription("only pull-wake subscriptions can be claimed")
            case "CLAIMED":
                raise Refused(
                    409, "ALREADY_CLAIMED",
                    current_holder=claimed.holder, generation=claimed.generation,
                )  # fmt: skip
            case "NOTHING":
                raise Refused(409, "NO_PENDING_WORK", "there is nothing to process")
        wake = Wake(name, claimed.wake_id, claimed.generation)
        self._running.waker.watch(name, claimed)
        return 200, {
            "wake_id": wake.wake_id,
            "generation": wake.generation,
            "token": (await self._store.keys()).token(wake, "claim"),
            "streams": [described(each) for each in claimed.streams],
            "lease_ttl_ms": claimed.due_ms,
        }

    async def _ack(self, wake: Wake, document: object) -> tuple[int, dict[str, Any]]:
        _same_wake(wake, document)
        done = _field(document, "done", default=False)
        if not isinstance(done, bool):
            raise InvalidSubscription("done is true or false")
        acks = _acks(document)
        known = await self._store.look([path for path, _ in acks])
        tails = [each.tail for each in known]
        triples = [(path, at, tail) for (path, at), tail in zip(acks, tails, strict=True)]
        outcome = await self._store.link.call(self._store.commands.ack(wake, triples, done=done))
        _check(wake, outcome)
        self._running.waker.took(wake.subscription_id, outcome)
        return 200, {"ok": True, "next_wake": bool(outcome.streams)}

    async def _release(self, wake: Wake, document: object) -> tuple[int, None]:
        _same_wake(wake, document)
        outcome = await self._store.link.call(self._store.commands.ack(wake, done=True))
        _check(wake, outcome)
        self._running.waker.took(wake.subscription_id, outcome)
        return 204, None

    # Who may

    def _administer(self, scope: Scope, name: str) -> Access:
        access = self._gate.access(scope)
        self._gate.require(access, "admin", f"subscriptions/{name}")
        return access

    def _may_read(self, access: Access, paths: Sequence[str]) -> None:
        for path in paths:
            self._gate.require(access, "read", resource_of(slot_at(path)))

    async def _bearer(self, scope: Scope, name: str, use: Use) -> Wake:
        """The wake that the request's token is for. Only from the header: URLs are logged."""
        check_id(name)
        given = [value for key, value in scope["headers"] if key.lower() == b"authorization"]
        kind, _, token = (given[0] if len(given) == 1 else b"").decode("latin-1").partition(" ")
        keys = await self._store.keys()
        wake = keys.wake_of(token.strip(), use) if kind.lower() == "bearer" else None
        if wake is None or wake.subscription_id != name:
            raise Refused(401, "TOKEN_INVALID", "the token is not one for this subscription")
        return wake

    async def _body(self, scope: Scope, receive: Receive) -> object:
        body = await read_body(receive, self._settings, content_length(scope["headers"]))
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidSubscription("the body is not JSON") from None


def _refused(error: StreamError) -> Refused:
    match error:
        case SubscriptionNotFound():
            return Refused(404, "SUBSCRIPTION_NOT_FOUND", str(error))
        case SubscriptionConflict():
            return Refused(409, "SUBSCRIPTION_ALREADY_EXISTS", str(error))
    return Refused(400, "INVALID_REQUEST", str(error))


def _only(method: str, *methods: str) -> None:
    if method not in methods:
        raise Problem(
            405, "method-not-allowed", f"this knows no {method}",
            headers={"allow": ", ".join(methods)},
        )  # fmt: skip


def _base(scope: Scope) -> str:
    """The URL of ``__ds/``, as the client sees it."""
    host = next((v for k, v in scope["headers"] if k == b"host"), b"").decode("latin-1")
    return f"{scope['scheme']}://{host}{scope.get('root_path', '')}{STREAM_ROOT}__ds/"


def _shown_link(link: Linked) -> dict[str, str]:
    return {
        "path": link.path,
        "link_type": LINK_TYPES[link.link],
        "acked_offset": wire.offset_token(link.acked),
    }


def _field(document: object, name: str, default: object = None) -> Any:
    if not isinstance(document, Mapping):
        raise InvalidSubscription("the body is a JSON object")
    return document.get(name, default)


def _same_wake(wake: Wake, document: object) -> None:
    given = _field(document, "wake_id"), _field(document, "generation")
    if not isinstance(given[0], str) or type(given[1]) is not int:
        raise InvalidSubscription("wake_id and generation say which wake this is about")
    if given != (wake.wake_id, wake.generation):
        raise Refused(409, "FENCED", "this is not the token's wake")


def _check(wake: Wake, outcome: Outcome) -> None:
    match outcome.verdict:
        case "MISSING":
            raise SubscriptionNotFound(f"there is no subscription {wake.subscription_id!r}")
        case "FENCED":
            raise Refused(409, "FENCED", "this wake is over", generation=outcome.generation)
        case "UNLINKED":
            raise InvalidSubscription("an acknowledged stream is not one of the subscription")
        case "OFFSET":
            raise Refused(400, "INVALID_OFFSET", "an offset lies beyond the end of its stream")


def _acks(document: object) -> list[tuple[str, int]]:
    given = _field(document, "acks")
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > _MAX_ACKS:
        raise InvalidSubscription(f"acks is a list of at most {_MAX_ACKS}")
    acks = []
    for each in given:
        path, offset = _field(each, "stream"), _field(each, "offset")
        if not isinstance(path, str) or not isinstance(offset, str):
            raise InvalidSubscription("an ack has a stream and an offset")
        try:
            at = wire.parse_offset(offset)
            path = str(slot_at(path))
        except Problem as problem:
            raise Refused(400, "INVALID_OFFSET", problem.detail) from None
        except InvalidName as error:
            raise InvalidSubscription(str(error)) from None
        if at == "now":
            raise Refused(400, "INVALID_OFFSET", "an ack names an offset this server has given")
        acks.append((path, at))
    return acks


def _timestamp(unix_ms: int) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
