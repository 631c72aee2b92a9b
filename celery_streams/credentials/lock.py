"""The per-slot lock in Redis: who may initialize, and how the others learn the outcome."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis.exceptions as rx

from celery_streams.errors import StoreUnavailable
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.connect import receive
from celery_streams.redis.failures import REDIS_ERRORS, translated
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import load_script
from celery_streams.slots import Slot

_PACKAGE = "celery_streams.credentials"


@dataclass(frozen=True, slots=True)
class Found:
    """The slot's credentials are in Redis, sealed."""

    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """The caller holds the slot's lock, for a limited time."""

    slot: Slot
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else holds the lock, for at most ``remaining`` seconds more."""

    remaining: float


class SlotLock:
    """A lock whose holder leaves a value behind, and whose waiters are told, not polled for.

    The lock is a key with a random token and a lease. Only the holder of the token can
    install credentials or let go (both compare it in a script), so a holder that overran its
    lease changes nothing any more::

        time 0   A locks (token a, lease 10 s) and initializes; A's host freezes.
        time 10  Redis expires the lock. B locks (token b), initializes, stores B's
                 credentials, lets go. The fleet uses them.
        time 11  A thaws and stores: the lock does not hold `a`, so nothing happens. A throws
                 its credentials away and uses B's.

    A waiter must not miss the one message that says the holder is done. So it subscribes
    first and looks afterwards::

        time 0   A holds the lock. B looks: held.
        time 1   A stores, lets go, publishes. Nobody listens.
        time 2   B subscribes; the server confirms.
        time 3   B looks again, finds A's credentials and does not wait at all.

    Had A published after time 2, B would have the message: whatever happens after the
    confirmation is received, whatever happened before it is seen by the look. A holder that
    dies publishes nothing; then its waiters wake when its lease ends.
    """

    def __init__(self, link: RedisLink, layout: Layout, lease: float) -> None:
        self._link = link
        self._layout = layout
        self._lease_ms = max(1, int(lease * 1000))
        # Read now: the first look at a slot is made while others wait for its outcome.
        self._find_or_lock, self._store, self._release = (
            load_script(_PACKAGE, name) for name in ("find_or_lock", "store", "release")
        )

    def find_or_lock(self, slot: Slot, *, ignoring: bytes = b"") -> Found | Lease | Held:
        """The slot's credentials if there are any other than ``ignoring``, else its lock.

        Atomic: who gets the lock knows that there were none when he got it.
        """
        token = secrets.token_hex(8)
        return self._link.call(
            Call(
                self._find_or_lock,
                (self._layout.cached_credentials(slot), self._layout.lock(slot)),
                (token, self._lease_ms, ignoring),
                lambda reply: _outcome(reply, slot, token),
            )
        )

    def store(self, lease: Lease, sealed: bytes, life: float) -> bool:
        """Install ``sealed`` for ``life`` seconds, let go, and hand it to all who wait.

        ``False``: the lease had run out, and nothing was changed.
        """
        slot, layout = lease.slot, self._layout
        return self._link.call(
            Call(
                self._store,
                (layout.cached_credentials(slot), layout.lock(slot)),
                (lease.token, sealed, max(1, int(life * 1000)), layout.wake(slot)),
                bool,
            )
        )

    def release(self, lease: Lease) -> bool:
        """Let go with nothing to hand on; waiters look again at once.

        ``False``: the lease had run out, and the lock, perhaps a successor's, was left alone.
        """
        slot = lease.slot
        return self._link.call(
            # One script rather than a native compare-and-delete and a publish: dying between
            # the two would leave the waiters asleep.
            Call(
                self._release,
                (self._layout.lock(slot),),
                (lease.token, self._layout.wake(slot)),
                bool,
            )
        )

    @contextmanager
    def listening(self, slot: Slot) -> Iterator[Listener]:
        """Within the block, nothing the slot's holder leaves behind is missed.

        Raises:
            StoreUnavailable: the server did not confirm the subscription.
        """
        listener = Listener(self._link, self._layout.wake(slot))
        try:
            listener.subscribe()
            yield listener
        finally:
            listener.close()


class Listener:
    """A confirmed subscription to one slot's wake channel. Not thread-safe.

    On a bare connection rather than redis-py's ``PubSub``: a fleet wakes all at once, so what
    one waiter does from the message to its return, each of the others has to wait for, too.
    """

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._link = link
        self._channel = channel
        self._connection = link.connection(channel)

    def subscribe(self) -> None:
        """Returns once the server has confirmed."""
        with self._explained():
            self._connection.connect()
            self._connection.send_command("SSUBSCRIBE", self._channel)
            self._connection.read_response()

    def wait(self, timeout: float) -> bytes | None:
        """What the holder left: sealed credentials, ``b""`` for nothing; ``None``: no word of it
        within ``timeout`` seconds."""
        with self._explained():
            push = receive(self._connection, timeout)
        if push is None:
            return None
        kind, _, data = push
        # The other kind is the server's word that the slot has moved: nothing was left here.
        return bytes(data) if kind == b"smessage" else b""

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except rx.MovedError as error:
            self._link.refresh()
            raise StoreUnavailable(
                f"the cluster at {self._link.address} is moving a slot; try again"
            ) from error
        except REDIS_ERRORS as error:
            raise translated(error, self._link.address) from error


def _outcome(reply: list[Any], slot: Slot, token: str) -> Found | Lease | Held:
    match bytes(reply[0]), reply[1:]:
        case b"FOUND", [sealed]:
            return Found(sealed)
        case b"LOCKED", _:
            return Lease(slot, token)
        case _, [remaining]:
            return Held(max(remaining, 1) / 1000)
    raise AssertionError(f"unexpected reply {reply[0]!r}")  # pragma: no cover
