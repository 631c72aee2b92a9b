"""The scripts behind subscriptions as calls: built, and their replies parsed, without I/O."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_streams.redis.calls import Arg, Call
from celery_streams.redis.layout import CONTROL, Layout
from celery_streams.redis.scripts import Script, load_script
from celery_streams.slots import Scope
from celery_streams.subscriptions.config import Configuration

#: Milliseconds the generation of a deleted subscription is remembered.
_TOMBSTONE_MS = 7 * 86_400_000
#: Milliseconds of the first pause after a failed delivery, and of the longest (PROTOCOL 7.1).
_FIRST_PAUSE_MS = 1_000
_LONGEST_PAUSE_MS = 60_000
_JITTER = 0.2

SCOPES: tuple[Scope, ...] = ("run", "session", "path")
LINK_TYPES = {"g": "glob", "e": "explicit", "b": "explicit"}


@dataclass(frozen=True, slots=True)
class Update:
    """What is known of a stream now. ``tail`` ``None``: it does not exist.

    ``link``: what a subscription links it as if it has no such link: ``"g"`` (its pattern
    matches), ``"e"`` (explicitly) or ``""`` (it does not), and what counts as processed then.
    """

    path: str
    tail: int | None
    identity: str = ""
    link: str = ""
    acked: int = 0


@dataclass(frozen=True, slots=True)
class Linked:
    """One stream of a subscription."""

    path: str
    link: str
    acked: int
    tail: int

    @property
    def link_type(self) -> str:
        """As the protocol says it."""
        return LINK_TYPES[self.link]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a script: a verdict, and the state afterwards.

    ``due_ms``: when to look again, ``None``: when something happens. ``streams``: what to deliver
    as the wake ``wake_id``; it is the caller's to do, and nobody else's.
    """

    verdict: str
    due_ms: int | None
    generation: int
    wake_id: str
    holder: str
    streams: tuple[Linked, ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """One wake of one subscription."""

    subscription_id: str
    wake_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a subscription, besides its links."""

    configuration: Configuration
    base: str
    created_ms: int
    generation: int
    ready: bool
    failing: bool
    next_attempt_ms: int | None
    explicit: frozenset[str] = field(default=frozenset(), repr=False)


def _script(name: str) -> Script:
    return load_script("celery_streams.subscriptions", name)


def new_wake_id() -> str:
    """A wake's id."""
    return "w_" + secrets.token_hex(12)


class SubscriptionCommands:
    """Builds the calls. ``holder`` names this process where a script hands it something."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.holder = "p_" + secrets.token_hex(8)

    def create(self, subscription_id: str, configuration: Configuration, base: str) -> Call[str]:
        """``CREATED``, ``EXISTS`` (just like this) or ``CONFLICT``."""
        args = (
            configuration.type,
            configuration.lease_ttl_ms,
            configuration.digest,
            configuration.dump(),
            base,
        )
        return self._call("create", subscription_id, args, lambda reply: _outcome(reply).verdict)

    def ready(self, subscription_id: str) -> Call[int]:
        """The streams that its pattern matches are linked."""
        return Call("HSET", self._layout.subscription(subscription_id)[:1], ("ready", 1))

    def remove(self, subscription_id: str) -> Call[Outcome]:
        """Delete it; ``MISSING`` if there is none."""
        return self._call("remove", subscription_id, (_TOMBSTONE_MS,))

    def mark(
        self, subscription_id: str, updates: Iterable[Update] = (), *, hand_over: bool = True
    ) -> Call[Outcome]:
        """Note how far streams have got; wake, or wake again, if that is due.

        ``hand_over``: the caller delivers such a wake. Otherwise it is left to whoever looks next.
        """
        args: list[Arg] = [new_wake_id() if hand_over else "", self.holder]
        for each in updates:
            tail = -1 if each.tail is None else each.tail
            args += [each.path, tail, each.identity, each.link, each.acked]
        return self._call("mark", subscription_id, tuple(args))

    def unlink(self, subscription_id: str, paths: Iterable[str]) -> Call[Outcome]:
        """Remove explicit links."""
        return self._call("unlink", subscription_id, tuple(paths))

    def claim(
        self, subscription_id: str, worker: str, kind: str, wake: Wake | None = None
    ) -> Call[Outcome]:
        """Take the lease: ``OK``, ``CLAIMED``, ``NOTHING``, ``FENCED``, ``TYPE``, ``MISSING``."""
        wanted = (wake.wake_id, wake.generation) if wake else ("", 0)
        return self._call("claim", subscription_id, (worker, new_wake_id(), kind, *wanted))

    def ack(
        self,
        wake: Wake,
        acks: Iterable[tuple[str, int, int | None]] = (),
        *,
        done: bool,
        hand_over: bool = True,
    ) -> Call[Outcome]:
        """Acks are path, offset and the stream's tail if it was looked at: ``OK``, ``FENCED``,
        ``UNLINKED``, ``OFFSET`` or ``MISSING``. For ``hand_over`` see :meth:`mark`."""
        following = new_wake_id() if hand_over else ""
        args: list[Arg] = [wake.wake_id, wake.generation, int(done), following, self.holder]
        for path, offset, tail in acks:
            args += [path, offset, -1 if tail is None else tail]
        return self._call("ack", wake.subscription_id, tuple(args))

    def fail(self, wake: Wake) -> Call[Outcome]:
        """It could not be delivered, or processed: try again after a pause."""
        spread = (secrets.randbelow(2001) / 1000 - 1) * _JITTER
        pauses = (_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, 1 + spread)
        return self._call("fail", wake.subscription_id, (wake.wake_id, wake.generation, *pauses))

    def sent(self, wake: Wake, again_ms: int = 0, *, back: bool = False) -> Call[Outcome]:
        """It was passed on; do that once more after ``again_ms`` if nobody takes it (0: never).

        ``back``: it is passed on by whoever holds it, who gives it up.
        """
        args = (wake.wake_id, wake.generation, again_ms, int(back))
        return self._call("sent", wake.subscription_id, args)

    def record(self, subscription_id: str) -> tuple[Call[Record | None], Call[frozenset[str]]]:
        """The record, and the paths of its explicit links."""
        keys = self._layout.subscription(subscription_id)
        return (
            Call("HGETALL", (keys[0],), (), _record),
            Call("SMEMBERS", (keys[4],), (), lambda paths: frozenset(p.decode() for p in paths)),
        )

    def links(self, subscription_id: str, cursor: int) -> Call[tuple[int, list[Linked]]]:
        """A page of the links; their tails are not known here. Starts, and ends, with 0."""
        key = self._layout.subscription(subscription_id)[1]
        return Call("HSCAN", (key,), (cursor, "COUNT", 500), _links)

    def announce(self, subscription_id: str, *, exists: bool) -> Call[int]:
        """Tell every process of a change."""
        layout = self._layout
        return Call(
            _script("announce"),
            (layout.subscriptions("ids"), layout.subscriptions("version")),
            (layout.live(CONTROL), subscription_id, int(exists)),
        )

    def stir(self) -> Call[int]:
        """Have every dispatcher look at all subscriptions now."""
        return Call("SPUBLISH", (self._layout.live(CONTROL),), ("o",))

    def changes(self, since: int) -> Call[tuple[int, int, list[str]]]:
        """The version now, how many subscriptions there are, and which changed."""
        layout = self._layout
        return Call(
            _script("changes"),
            (layout.subscriptions("ids"), layout.subscriptions("version")),
            (since,),
            lambda reply: (reply[0], reply[1], [each.decode() for each in reply[2]]),
        )

    def ids(self) -> Call[list[str]]:
        """The ids of all subscriptions."""
        key = self._layout.subscriptions("ids")
        return Call("ZRANGE", (key,), (0, -1), lambda reply: [each.decode() for each in reply])

    def lead(self, life_ms: int) -> Call[bool]:
        """Become or stay the process that follows streams for all."""
        key = self._layout.subscriptions("leader")
        return Call(_script("lead"), (key,), (self.holder, life_ms), bool)

    def resign(self) -> Call[Any]:
        """Let another process lead at once."""
        key = self._layout.subscriptions("leader")
        return Call(
            load_script("celery_streams.redis", "compare_and_delete"), (key,), (self.holder,)
        )

    def seen(self) -> Call[dict[Scope, float]]:
        """How far in the index the leader had looked, by scope (Unix seconds)."""
        key = self._layout.subscriptions("seen")
        return Call("HMGET", (key,), SCOPES, _seen)

    def keep_seen(self, seen: Mapping[Scope, float]) -> Call[Any]:
        """Remember that."""
        flat = [part for scope, at in seen.items() for part in (scope, round(at * 1000))]
        return Call("HSET", (self._layout.subscriptions("seen"),), tuple(flat))

    def key(self) -> tuple[Call[Any], Call[bytes]]:
        """The deployment's key where no secret is configured: made by whoever needs it first."""
        key = self._layout.subscriptions("key")
        return Call("SET", (key,), (secrets.token_hex(32), "NX")), Call("GET", (key,))

    def _call(
        self, name: str, subscription_id: str, args: tuple[Arg, ...], parse: Any = None
    ) -> Call[Any]:
        keys = self._layout.subscription(subscription_id)
        return Call(_script(name), keys, args, parse or _outcome)


def _outcome(reply: list[Any]) -> Outcome:
    verdict, due, generation, wake, holder, flat = reply
    streams = tuple(
        Linked(flat[at].decode(), flat[at + 1].decode(), int(flat[at + 2]), int(flat[at + 3]))
        for at in range(0, len(flat), 4)
    )
    return Outcome(
        verdict.decode(), None if due < 0 else due, generation, wake.decode(), holder.decode(),
        streams,
    )  # fmt: skip


def _record(reply: list[bytes] | dict[bytes, bytes]) -> Record | None:
    pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    if b"config" not in pairs:
        return None
    following = pairs.get(b"next")
    return Record(
        Configuration.load(pairs[b"config"]),
        pairs.get(b"base", b"").decode(),
        int(pairs[b"created"]),
        int(pairs[b"generation"]),
        b"ready" in pairs,
        b"attempts" in pairs,
        None if following is None else int(following),
    )


def _seen(reply: list[bytes | None]) -> dict[Scope, float]:
    pairs = zip(SCOPES, reply, strict=True)
    return {scope: int(at) / 1000 for scope, at in pairs if at is not None}


def _links(reply: list[Any]) -> tuple[int, list[Linked]]:
    cursor, flat = reply
    links = []
    for path, text in zip(flat[::2], flat[1::2], strict=True):
        kind, acked, _ = text.decode().split(":", 2)
        links.append(Linked(path.decode(), kind, int(acked), int(acked)))
    return int(cursor), links
