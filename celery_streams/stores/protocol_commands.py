"""The commands behind the protocol's HTTP methods, built and their replies parsed without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from celery_streams.chunks import frame
from celery_streams.contracts import JSON, Entry
from celery_streams.errors import RunFinished, StoreUnavailable, StreamError, StreamNotFound
from celery_streams.protocol import (
    AlreadyClosed,
    BadEpoch,
    BadFork,
    ClientProducer,
    Conflict,
    Creation,
    Lifetime,
    Post,
    Posted,
    ProducerFenced,
    ProducerGap,
    SequenceConflict,
    StreamDeleted,
)
from celery_streams.redis.calls import Call
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import Script, load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

#: Milliseconds a half-made fork is kept after its last step.
_STAGED_MS = 60_000


def _script(name: str) -> Script:
    return load_script("celery_streams.stores", name)


@dataclass(frozen=True, slots=True)
class Source:
    """A fork's source, as of the moment the fork was announced to it."""

    offset: int
    content_type: str
    lifetime: Lifetime
    identity: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A stream of which nothing is left, and what it was forked from, if it was."""

    source: Slot | None
    identity: str


class ProtocolCommands:
    """Builds the calls of one store configuration. Stateless, shareable."""

    def __init__(self, layout: Layout, settings: StreamsSettings) -> None:
        self.layout = layout
        self._retention = max(1, round(settings.retention * 1000))
        self._max_chunks = settings.max_chunks

    def create(
        self, slot: Slot, creation: Creation, identity: str, inherited: int = 0, copied: int = 0
    ) -> Call[bool]:
        """``True`` if it was created now.

        ``inherited`` is where a fork's own chunks begin, ``copied`` how many entries were staged
        for it; -1: it exists, and is only compared.
        """
        layout, lifetime = self.layout, creation.lifetime
        content_type = creation.content_type or JSON
        return Call(
            _script("create"),
            (
                layout.meta(slot),
                layout.log(slot),
                layout.producers(slot),
                layout.keys(slot),
                layout.owner(slot),
                layout.staged(slot, identity),
            ),
            (
                layout.live(slot),
                slot.key,
                int(slot.scope == "run"),
                self._kept(slot),
                identity,
                content_type,
                "" if lifetime.ttl is None else lifetime.ttl,
                lifetime.expires_at or "",
                _unix_ms(lifetime.expires_at) if lifetime.expires_at else "",
                fork_text(creation),
                inherited,
                int(creation.closed),
                len(creation.chunks),
                frame(creation.chunks, content_type),
                copied,
            ),
            partial(_created, slot),
        )

    def post(self, slot: Slot, post: Post) -> Call[Posted]:
        """See :meth:`celery_streams.protocol.ProtocolStore.post`."""
        layout, producer = self.layout, post.producer
        return Call(
            _script("post"),
            (layout.meta(slot), layout.log(slot), layout.producers(slot), layout.forks(slot)),
            (
                layout.live(slot),
                post.content_type or "",
                len(post.chunks),
                frame(post.chunks, post.content_type or JSON),
                int(post.close),
                "" if post.stream_seq is None else f"s{post.stream_seq}",
                producer.producer_id if producer else "",
                producer.epoch if producer else 0,
                producer.seq if producer else 0,
                self._kept(slot),
                0 if slot.scope == "path" else self._max_chunks,
            ),
            partial(_posted, slot, producer),
        )

    def refer(self, source: Slot, offset: int | None, member: str) -> Call[Source]:
        """Announce a fork to its source."""
        layout = self.layout
        return Call(
            _script("refer"),
            (layout.meta(source), layout.log(source), layout.forks(source)),
            (member, "" if offset is None else offset),
            partial(_source, source),
        )

    def stage(self, slot: Slot, identity: str, entries: Sequence[Entry]) -> Call[int]:
        """Copy some of the source's entries to where :meth:`create` will look for them."""
        copies = [(f"{entry.end}-{entry.count}", entry.payload) for entry in entries]
        arguments = [argument for copy in copies for argument in copy]
        key = self.layout.staged(slot, identity)
        return Call(_script("stage"), (key,), (_STAGED_MS, *arguments))

    def unstage(self, slot: Slot, identity: str) -> Call[int]:
        """Throw away what :meth:`stage` has copied."""
        return Call("DEL", (self.layout.staged(slot, identity),))

    def release(self, source: Slot, members: Sequence[str]) -> Call[Gone | None]:
        """Forks of ``source`` are gone; what is left of it if it only waited for that."""
        keys = (self.layout.meta(source), self.layout.forks(source))
        return Call(_script("release"), keys, tuple(members), _gone)

    def forks(self, source: Slot, count: int) -> Call[list[str]]:
        """Some of the forks of ``source``."""
        return Call("SRANDMEMBER", (self.layout.forks(source),), (count,), _texts)

    def keys(self, slot: Slot) -> Call[list[str]]:
        """The streams that the slot's run or session has opened, sorted."""
        return Call("SMEMBERS", (self.layout.keys(slot),), (), lambda reply: sorted(_texts(reply)))

    def is_alive(self, member: str) -> Call[bool]:
        """Whether a fork still exists (and is not another stream of that name)."""
        owner, _, identity = member.partition("/")
        meta = self.layout.meta(Slot("path", owner, "default"))
        return Call("HGET", (meta,), ("id",), lambda found: found == identity.encode())

    def remove(self, slot: Slot) -> Call[Gone | None]:
        """See :meth:`celery_streams.protocol.ProtocolStore.remove`; ``None``: forks remain."""
        layout = self.layout
        return Call(
            _script("remove"),
            (
                layout.meta(slot),
                layout.log(slot),
                layout.producers(slot),
                layout.forks(slot),
                layout.keys(slot),
            ),
            (slot.key, layout.live(slot)),
            partial(_removed, slot),
        )

    def touch(self, slot: Slot, ttl: int) -> list[Call[int]]:
        """See :meth:`celery_streams.protocol.ProtocolStore.touch`."""
        layout = self.layout
        keys = (layout.meta(slot), layout.log(slot), layout.producers(slot), layout.forks(slot))
        return [Call("EXPIRE", (key,), (ttl,)) for key in keys]

    def _kept(self, slot: Slot) -> int | str:
        return "" if slot.scope == "path" else self._retention


def member(slot: Slot, identity: str) -> str:
    """A fork's name in the set of its source's forks."""
    return f"{slot.owner}/{identity}"


def fork_text(creation: Creation) -> str:
    """What a stream was forked from, as it was asked for; empty if it was not."""
    fork = creation.fork
    if fork is None:
        return ""
    return f"{fork}@{'' if fork.offset is None else fork.offset}+{fork.sub_offset}"


def _unix_ms(timestamp: str) -> int:
    return round(datetime.fromisoformat(timestamp).timestamp() * 1000)


def _created(slot: Slot, reply: list[bytes]) -> bool:
    match reply:
        case [b"CREATED"]:
            return True
        case [b"EXISTS"]:
            return False
        case [b"UNSTAGED"]:
            raise StoreUnavailable(f"{slot} was deleted, or its copy expired, while it was made")
        case [b"CONFLICT", reason]:
            raise Conflict(f"there is a stream {slot} already: {reason.decode()}")
        case [b"FINISHED", state]:
            raise RunFinished(
                f"run {slot.owner} has finished ({state.decode()}); no stream of it can be opened",
                state=state.decode(),
            )
    raise _unexpected(slot, reply)


def _posted(slot: Slot, producer: ClientProducer | None, reply: list[Any]) -> Posted:
    match reply:
        case [b"OK" | b"DUPLICATE" as verdict, end, closed, seq]:
            return Posted(end, bool(closed), verdict == b"DUPLICATE", seq if producer else None)
        case [b"CLOSED", end, state]:
            raise AlreadyClosed(
                f"{slot} has ended ({state.decode()}); nothing can be appended to it", end=end
            )
        case [b"TYPE", content_type]:
            raise Conflict(f"{slot} is a stream of {content_type.decode()}")
        case [b"FENCED", epoch]:
            raise ProducerFenced(
                f"a later epoch ({epoch.decode()}) of this producer has written to {slot}",
                epoch=int(epoch),
            )
        case [b"EPOCH", _]:
            raise BadEpoch("a new Producer-Epoch starts with Producer-Seq 0")
        case [b"GAP", expected]:
            raise ProducerGap(
                f"{slot} expects Producer-Seq {expected} of this producer",
                expected=expected,
                received=producer.seq if producer else 0,
            )
        case [b"SEQ", last]:
            raise SequenceConflict(f"Stream-Seq must come after {last.decode()!r}")
    raise _refused(slot, reply)


def _source(slot: Slot, reply: list[Any]) -> Source:
    match reply:
        case [b"OK", offset, _, content_type, ttl, expires, identity]:
            lifetime = Lifetime(int(ttl) if ttl else None, expires.decode() or None)
            return Source(offset, content_type.decode(), lifetime, identity.decode())
        case [b"BEYOND", end]:
            raise BadFork(f"{slot} ends at {end.decode()}; it cannot be forked beyond that")
        case [b"DELETED", _]:
            raise Conflict(f"{slot} was deleted; it cannot be forked any more")
    raise _refused(slot, reply)


def _removed(slot: Slot, reply: list[bytes]) -> Gone | None:
    if reply[0] in (b"GONE", b"KEPT"):
        return _gone(reply)
    raise _refused(slot, reply)


def _gone(reply: list[bytes]) -> Gone | None:
    if reply[0] == b"KEPT":
        return None
    source = reply[1].decode().rpartition("@")[0]
    if not source:
        return Gone(None, reply[2].decode())
    scope, owner, key = source.split("/")
    return Gone(Slot(scope, owner, key), reply[2].decode())  # type: ignore[arg-type]


def _refused(slot: Slot, reply: list[Any]) -> StreamError:
    match reply:
        case [b"MISSING", *_]:
            return StreamNotFound(f"there is no stream {slot}, or it has expired")
        case [b"DELETED", *_]:
            return StreamDeleted(f"{slot} was deleted; only its forks are left")
    return _unexpected(slot, reply)


def _unexpected(slot: Slot, reply: list[Any]) -> StreamError:
    return StreamError(f"unexpected reply of the store for {slot}: {reply!r}")


def _texts(reply: list[bytes]) -> list[str]:
    return [text.decode() for text in reply]
