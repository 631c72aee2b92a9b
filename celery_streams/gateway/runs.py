"""What is known of runs and sessions: ``/v1/runs`` and ``/v1/sessions``, as JSON documents."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl, quote

from celery_streams.contracts import Head
from celery_streams.errors import InvalidName, StreamError, StreamNotFound
from celery_streams.gateway import wire
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Replies, Scope, Send
from celery_streams.gateway.run_states import run_state
from celery_streams.gateway.targets import STREAM_ROOT
from celery_streams.protocol import ProtocolStore, StreamDeleted
from celery_streams.slots import Slot
from celery_streams.tokens import Access, resource_of

RUNS = "/v1/runs"
SESSIONS = "/v1/sessions"

_LIMIT, _MOST = 50, 200
#: Pages of the index looked through to find that many runs.
_PAGES = 8
#: States in which a run's worker may be gone without having said how the run ended.
_DOUBTFUL = ("PENDING", "RETRY", "STALLED")
#: No scope can name this, so only those that end in ``*`` cover it.
_EACH = "{each}"

Inquire = Callable[[str], Awaitable[str | None]]
Kind = Literal["run", "session"]


class RunsEndpoint:
    """Answers ``GET`` for one run or session, and for the most recent ones."""

    def __init__(self, store: ProtocolStore, inquire: Inquire, gate: Gate, replies: Replies):
        self._store = store
        self._inquire = inquire
        self._gate = gate
        self._replies = replies

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of these documents'."""
        return any(path == root or path.startswith(f"{root}/") for root in (RUNS, SESSIONS))

    async def __call__(self, scope: Scope, send: Send, path: str) -> None:
        """Answer a request for ``path``, one that :meth:`serves` accepts."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(
                405, "method-not-allowed", f"there is no {scope['method']} here",
                headers={"allow": "GET, HEAD"},
            )  # fmt: skip
        access = self._gate.access(scope)
        kind: Kind = "run" if path.startswith(RUNS) else "session"
        owner = path.removeprefix(RUNS if kind == "run" else SESSIONS).removeprefix("/")
        root = scope.get("root_path", "")
        if owner:
            document = await self._one(access, kind, owner, root)
        else:
            document = await self._recent(access, kind, _limit(scope))
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        await self._replies.reply(scope, send, 200, headers, body)

    async def _one(self, access: Access, kind: Kind, owner: str, root: str) -> dict[str, Any]:
        slot = _slot(kind, owner)
        if not access.allows("read", f"{kind}s/{owner}/{_EACH}"):
            self._gate.require(access, "read", f"{kind}s/{owner}")
        heads = await self._heads(slot)
        if kind == "session":
            return {"id": owner, "streams": _streams(heads, root)}
        state = _state(heads)
        if state in _DOUBTFUL and (ended := await self._inquire(owner)) is not None:
            heads = await self._heads(slot)  # they have just been closed
            state = "STALLED" if ended == "LOST" else ended
        return {"id": owner, "state": state, **_attempts(heads), "streams": _streams(heads, root)}

    async def _recent(self, access: Access, kind: Kind, limit: int) -> dict[str, Any]:
        if not access.allows("read", f"{kind}s/{_EACH}"):
            raise self._gate.refusal(f"read:{kind}s/*")
        recent = await self._owners(kind, limit)
        owners = list(recent)
        keys = await self._store.keys([_slot(kind, owner) for owner in owners])
        slots = [
            _with_key(kind, owner, key)
            for owner, known in zip(owners, keys, strict=True)
            for key in known
        ]
        heads = await self._found(slots)
        rows = []
        for owner, seconds in recent.items():
            own = [head for head in heads if head.slot.owner == owner]
            if not own:
                continue  # expired, or its first stream is only being opened
            row: dict[str, Any] = {"id": owner, "openedAt": round(seconds, 3)}
            if kind == "run":
                row |= {"state": _state(own), **_attempts(own)}
            row["streams"] = len(own)
            row["chunks"] = sum(head.end for head in own)
            rows.append(row)
        return {f"{kind}s": rows}

    async def _owners(self, kind: Kind, limit: int) -> dict[str, float]:
        """Whose streams were opened last, and when; the index has streams, perhaps many of each."""
        owners: dict[str, float] = {}
        before: float | None = None
        for _ in range(_PAGES):
            page = await self._store.recent(kind, limit, before=before)
            for slot, opened_at in page:
                owners.setdefault(slot.owner, opened_at)
            if len(page) < limit or len(owners) >= limit:
                break
            before = page[-1][1]
        return dict(list(owners.items())[:limit])

    async def _heads(self, slot: Slot) -> list[Head]:
        (keys,) = await self._store.keys([slot])
        return await self._found([_with_key(slot.scope, slot.owner, key) for key in keys])

    async def _found(self, slots: Sequence[Slot]) -> list[Head]:
        """The heads of those that exist."""
        found = []
        for head in await self._store.heads(slots) if slots else ():
            if isinstance(head, Head):
                found.append(head)
            elif not isinstance(head, StreamNotFound | StreamDeleted):
                raise head if isinstance(head, StreamError) else RuntimeError(str(head))
        return found


def _slot(kind: Kind, owner: str) -> Slot:
    try:
        return Slot.run(owner) if kind == "run" else Slot.session(owner)
    except InvalidName as error:
        raise Problem(400, "invalid-path", str(error)) from None


def _with_key(kind: str, owner: str, key: str) -> Slot:
    return Slot(kind, owner, key)  # type: ignore[arg-type]


def _state(heads: Sequence[Head]) -> str:
    """The run's state; its streams agree, except for what happened between two looks."""
    states = [state for head in heads if (state := run_state(head.slot, head)) is not None]
    return states[-1] if states else "PENDING"


def _attempts(heads: Sequence[Head]) -> Mapping[str, int]:
    return {"attempts": max((head.epoch for head in heads), default=0)}


def _streams(heads: Sequence[Head], root: str) -> list[dict[str, Any]]:
    return [
        {
            "key": head.slot.key,
            "url": f"{root}{STREAM_ROOT}{quote(resource_of(head.slot))}",
            "contentType": head.content_type,
            "firstOffset": wire.offset_token(head.first),
            "nextOffset": wire.offset_token(head.end),
            "closed": head.closed is not None,
        }
        for head in sorted(heads, key=lambda head: (head.slot.key != "default", head.slot.key))
    ]


def _limit(scope: Scope) -> int:
    query = scope.get("query_string", b"").decode("latin-1")
    given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=50)).get("limit")
    if given is None:
        return _LIMIT
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) > 0):
        raise Problem(400, "invalid-limit", "limit is a whole number from 1 on")
    return min(int(given), _MOST)
