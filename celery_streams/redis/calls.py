"""Calls as plain data, and what happens to them on their way: decided without I/O.

A :class:`Call` knows what to send and how to read the reply. A :class:`Sending` follows several
calls through the replies that mean "send it again, differently": an unknown script, a slot
that has moved. The sync and the asyncio link only move the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import redis.exceptions as rx

from celery_streams.errors import ConfigurationError, StoreUnavailable
from celery_streams.redis.address import Address
from celery_streams.redis.failures import translated
from celery_streams.redis.scripts import Script

T = TypeVar("T")
Arg = str | bytes | int | float

#: Times a call is sent on by redirections before it counts as failed.
MAX_HOPS = 4


def _as_is(reply: Any) -> Any:
    return reply


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script call or command: what to send, where it belongs, how to read the reply.

    ``parse`` may raise a :class:`~celery_streams.errors.StreamError` the reply stands for.
    """

    command: Script | str
    keys: tuple[str, ...]
    args: tuple[Arg, ...] = field(default=(), repr=False)
    parse: Callable[[Any], T] = _as_is

    def words(self, *, by_source: bool = False) -> tuple[Arg, ...]:
        """The command as sent: by digest, or with the whole source for a new server."""
        if isinstance(self.command, str):
            return (self.command, *self.keys, *self.args)
        verb, body = (
            ("EVAL", self.command.source) if by_source else ("EVALSHA", self.command.digest)
        )
        return (verb, body, len(self.keys), *self.keys, *self.args)


def packed(commands: Sequence[Sequence[Arg]]) -> bytes:
    """Commands as the server reads them: RESP arrays of bulk strings, one after the other.

    redis-py's own packer takes a fifth of an append's time on this side.
    """
    parts: list[bytes] = []
    for words in commands:
        parts.append(b"*%d\r\n" % len(words))
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Hop:
    """The next step of one call. ``asked`` is the node a migrating slot was asked of."""

    place: int
    by_source: bool = False
    asked: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas must confirm writes (0: none), and for how many milliseconds to wait."""

    count: int = 0
    wait_ms: int = 0


class Sending(Generic[T]):
    """Several calls under way. Ask for the next hops, send their commands, give the replies.

    ``results`` holds, in the calls' order, what became of each. ``outdated`` is set when a
    reply shows that the table of the cluster's nodes is.
    """

    def __init__(
        self, calls: Sequence[Call[T]], where: Address, replicas: Replicas = Replicas()
    ) -> None:
        self.calls = calls
        self.results: list[T | Exception] = [cast("T", None)] * len(calls)
        self.outdated = False
        self._where = where
        self._replicas = replicas
        self._next = [Hop(place) for place in range(len(calls))]
        self._rounds = 0

    def hops(self) -> list[Hop]:
        """What to send now; empty when every call has its result."""
        hops, self._next = self._next, []
        self._rounds += 1
        return hops

    def key(self, hop: Hop) -> str:
        """The key whose slot says which node the call belongs to."""
        return self.calls[hop.place].keys[0]

    def commands(self, hops: Sequence[Hop]) -> list[tuple[Arg, ...]]:
        """The commands of hops that go to one node, on one connection."""
        commands: list[tuple[Arg, ...]] = []
        for hop in hops:
            if hop.asked is not None:
                commands.append(("ASKING",))
            commands.append(self.calls[hop.place].words(by_source=hop.by_source))
        if self._replicas.count:
            commands.append(("WAIT", self._replicas.count, self._replicas.wait_ms))
        return commands

    def answered(self, hops: Sequence[Hop], replies: Sequence[Any]) -> None:
        """Take the replies to :meth:`commands` of the same hops."""
        rest = list(replies)
        lagging = self._lagging(rest.pop()) if self._replicas.count else None
        at = 0
        for hop in hops:
            at += hop.asked is not None
            reply = rest[at]
            at += 1
            if isinstance(reply, Exception):
                self._refused(hop, reply)
            elif lagging is not None:
                self.results[hop.place] = lagging
            else:
                self._accepted(hop, reply)

    def failed(self, hops: Sequence[Hop], error: Exception) -> None:
        """No replies to these hops: the connection broke, or there is no node for them."""
        self.outdated = True
        for hop in hops:
            self._give_up(hop, error)

    def _accepted(self, hop: Hop, reply: Any) -> None:
        try:
            self.results[hop.place] = self.calls[hop.place].parse(reply)
        except Exception as error:
            self.results[hop.place] = error

    def _refused(self, hop: Hop, error: Exception) -> None:
        again = self._rounds < MAX_HOPS
        if isinstance(error, rx.NoScriptError) and not hop.by_source:
            self._next.append(Hop(hop.place, by_source=True, asked=hop.asked))
            return
        if isinstance(error, rx.AskError) and not self._where.cluster:
            self.results[hop.place] = _is_a_cluster(self._where)
            return
        if isinstance(error, rx.MovedError):
            self.outdated = True
            if again:
                self._next.append(Hop(hop.place, by_source=hop.by_source))
                return
        elif isinstance(error, rx.AskError) and again:
            self._next.append(
                Hop(hop.place, by_source=hop.by_source, asked=(error.host, error.port))
            )
            return
        elif isinstance(error, rx.ClusterDownError | rx.ReadOnlyError):
            self.outdated = True
        self._give_up(hop, error)

    def _give_up(self, hop: Hop, error: Exception) -> None:
        ours = translated(error, self._where)
        if ours is not error:
            ours.__cause__ = error
        self.results[hop.place] = ours

    def _lagging(self, reply: Any) -> Exception | None:
        if isinstance(reply, Exception):
            return translated(reply, self._where)
        wanted = self._replicas.count
        if int(reply) >= wanted:
            return None
        return StoreUnavailable(
            f"{reply} of {wanted} replicas of Redis at {self._where} confirmed the write within "
            f"{self._replicas.wait_ms} ms; it is sent again until they do. If the server has "
            "fewer replicas than that, lower CELERY_STREAMS_WAIT_REPLICAS"
        )


def _is_a_cluster(where: Address) -> ConfigurationError:
    return ConfigurationError(
        f"Redis at {where} is a cluster; put redis+cluster:// (or rediss+cluster://) in "
        "CELERY_STREAMS_URL"
    )
