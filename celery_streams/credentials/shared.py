"""The Redis level of the cache: what the fleet shares, and what happens when it is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_streams.contracts import Credentials
from celery_streams.credentials.lock import Found, Held, Lease, SlotLock
from celery_streams.credentials.sealing import Minted, Sealer, secret_of
from celery_streams.errors import StoreUnavailable
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.compare_delete import CompareAndDelete
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stats import Stats

logger = logging.getLogger("celery_streams.credentials")


class TurnNeverCame(StoreUnavailable):
    """Redis works, but holder after holder of a slot's lock failed, died or was too slow."""


#: Says whether credentials found in Redis are of use to the one who looks.
Usable = Callable[[Minted], bool]


class SharedLevel:
    """Credentials in Redis: sealed, installed under the slot's lock, removed by value."""

    def __init__(
        self, link: RedisLink, layout: Layout, settings: StreamsSettings, stats: Stats
    ) -> None:
        self._link = link
        self._layout = layout
        self._stats = stats
        self._lock = SlotLock(link, layout, settings.lock_lease)
        self._sealer = Sealer(secret_of(settings, link.address))
        self._compare_and_delete = CompareAndDelete(link)
        self._patience = settings.lock_lease + settings.retry_timeout

    def find(self, slot: Slot, usable: Usable) -> Minted | None:
        """The fleet's credentials, if there are usable ones. One round trip."""
        sealed = self._read(slot)
        return self._opened(slot, sealed, usable) if sealed is not None else None

    def find_or_lock(self, slot: Slot, usable: Usable) -> Minted | Lease:
        """Usable credentials, or the lock that entitles to mint them; waits for other holders.

        Raises:
            StoreUnavailable: Redis is down.
            TurnNeverCame: holder after holder failed or died for ``lock_lease +
                retry_timeout`` seconds.
        """
        outcome = self.find_or_try_lock(slot, usable)
        if not isinstance(outcome, Held):
            return outcome
        self._stats.add(lock_waits=1)
        give_up = time.monotonic() + self._patience
        with self._lock.listening(slot) as listener:
            while isinstance(outcome := self.find_or_try_lock(slot, usable), Held):
                left = give_up - time.monotonic()
                if left <= 0:
                    raise TurnNeverCame(
                        f"waited {self._patience:g} s for other processes to initialize stream "
                        f"{slot}, in vain; if initializing takes long, raise "
                        "CELERY_STREAMS_LOCK_LEASE"
                    )
                sealed = listener.wait(min(outcome.remaining, left))
                if sealed and (minted := self._opened(slot, sealed, usable)) is not None:
                    return minted
        return outcome

    def find_or_try_lock(self, slot: Slot, usable: Usable) -> Minted | Lease | Held:
        """The same without waiting: says so if somebody else holds the lock."""
        ignoring = b""
        while isinstance(outcome := self._lock.find_or_lock(slot, ignoring=ignoring), Found):
            if (minted := self._opened(slot, outcome.sealed, usable)) is not None:
                return minted
            ignoring = outcome.sealed
        return outcome

    def store(self, lease: Lease, minted: Minted, now: float) -> bool:
        """Install what was minted under ``lease`` and wake the waiters; see
        :meth:`SlotLock.store`."""
        life = minted.credentials.expires_at - now
        return self._lock.store(lease, self._sealer.seal(minted), life)

    def release(self, lease: Lease) -> None:
        """Let go without having minted. If Redis is down, the lease ends by itself."""
        try:
            self._lock.release(lease)
        except StoreUnavailable:
            logger.debug("lock of stream %s is left to expire: Redis is down", lease.slot)

    def evict(self, credentials: Credentials) -> bool:
        """Remove exactly these credentials; ``False`` if others, or none, are installed."""
        slot = credentials.slot
        sealed = self._read(slot)
        if sealed is None:
            return False
        minted = self._sealer.open(slot, sealed)
        if minted is None or minted.credentials != credentials:
            return False
        return self._compare_and_delete(self._layout.cached_credentials(slot), sealed)

    def after_fork(self) -> None:
        """In the child: locks that the parent's threads held are nobody's."""
        self._sealer.after_fork()

    def _read(self, slot: Slot) -> bytes | None:
        return self._link.call(Call("GET", (self._layout.cached_credentials(slot),), (), _bytes))

    def _opened(self, slot: Slot, sealed: bytes, usable: Usable) -> Minted | None:
        minted = self._sealer.open(slot, sealed)
        if minted is None or not usable(minted):
            return None
        self._stats.add(cache_hits_l2=1)
        return minted


class Outage:
    """Tells the log once that Redis is down, and once that it is back."""

    def __init__(self) -> None:
        self._down = False
        self._lock = threading.Lock()

    def noticed(self, error: StoreUnavailable) -> None:
        """An operation failed."""
        with self._lock:
            if self._down:
                return
            self._down = True
        logger.warning(
            "the fleet's credentials cache is down; every process initializes its streams itself "
            "until it is back (%s)",
            error,
        )

    def over(self) -> None:
        """An operation succeeded."""
        if not self._down:
            return
        with self._lock:
            was_down, self._down = self._down, False
        if was_down:  # and no other thread has said so
            logger.info("the fleet's credentials cache is back")


def _bytes(reply: bytes | None) -> bytes | None:
    return reply
