"""One set of credentials per slot for the whole fleet: :class:`CredentialCache`."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from celery_streams.contracts import JSON, Authority, Credentials
from celery_streams.credentials.lock import Held, Lease
from celery_streams.credentials.refresh import Refresher, due_at, retry_at
from celery_streams.credentials.sealing import Minted
from celery_streams.credentials.shared import Outage, SharedLevel, TurnNeverCame
from celery_streams.errors import ConfigurationError, RunFinished, StoreUnavailable
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stats import Stats

logger = logging.getLogger("celery_streams.credentials")

_Name = tuple[str, str, str]

#: Times in a row that ``initialize`` may outlast the lock's lease before its caller is told.
_MOST_OVERRUNS = 3


@dataclass(slots=True, eq=False)
class _Entry:
    """What the process knows of one slot. ``get`` looks at nothing but ``fresh_until``."""

    minted: Minted
    credentials: Credentials
    fresh_until: float
    used: int
    refreshing: bool = False
    complained: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """One attempt of this process to obtain a slot's credentials; concurrent callers share it."""

    landed: Future[Credentials] = field(default_factory=Future)


class _Abandoned(Exception):
    """The flight's leader was interrupted (time limit, exit): its followers try themselves."""


class CredentialCache:
    """Answers "with which credentials do I write to this slot?", for all who write to it.

    However many threads, processes and hosts ask, the authority's ``initialize`` runs once per
    slot and life of its credentials. Two levels, and a lock:

    1. *Process*: a dictionary, read without a lock. Callers that miss at the same time share
       one flight: one of them goes on, the others wait for its outcome, error included.
    2. *Redis*: the credentials, encrypted, under the slot's key.
    3. *The slot's lock*, in Redis: its holder looks again, initializes, stores the credentials
       only if it still holds the lock, and hands them to everybody who waits for it.

    A cold slot and three processes, B being the fastest::

        time 0   A, B and C miss in the process and in Redis.
        time 1   B finds nothing and takes the lock, in one step. A and C find it held.
        time 2   A subscribes, looks again (still held) and sleeps.
        time 3   B has initialized. In one step it checks that the lock is still its own, stores
                 the credentials, lets go and publishes them. A has them with that message.
        time 4   C subscribes (too late for the message), looks again and finds them.

    If B fails, its lock goes and A is woken to try itself; B's caller gets the error, and
    nothing of it is remembered. If B dies, A wakes when B's lease ends. If B freezes for
    longer than its lease, its late store is refused, and B uses its successor's credentials
    (see :class:`~celery_streams.credentials.lock.SlotLock`).

    **Evicting** is compare-and-delete at both levels: in the process by identity, in Redis by
    value. Of ten writers whose credentials are rejected at once, one removes them; the others
    find newer ones (or none) there and leave them alone.

    **Refresh**: while less than ``refresh_ahead`` of the life remains, ``get`` still answers at
    once, and a background thread renews the credentials under the same lock, so that one
    process of the fleet initializes and the others adopt what it stored.

    **Redis down**: the cache works at process level only and says so once. Errors of
    ``initialize`` itself are the caller's to handle.

    Thread-safe, and usable in a forked child; ``link`` must belong to the process.

    Args:
        authority: mints the credentials.
        link: where the fleet shares them; need not be the authority's.
        layout: key names.
        settings: ``cache_size``, ``lock_lease``, ``refresh_ahead``, ``retry_timeout``, ``secret``.
        stats: counts initializes, hits, waits, evictions and refreshes.
        clock: Unix time in seconds, to which ``expires_at`` is compared.
    """

    def __init__(
        self,
        authority: Authority,
        link: RedisLink,
        layout: Layout,
        settings: StreamsSettings,
        stats: Stats,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._stats = stats
        self._clock = clock
        self._ahead = settings.refresh_ahead
        self._size = settings.cache_size
        self._shared = SharedLevel(link, layout, settings, stats)
        self._outage = Outage()
        self._refresher = Refresher()
        self._entries: dict[_Name, _Entry] = {}
        self._flights: dict[_Name, _Flight] = {}
        self._lock = threading.Lock()
        self._hits = 0
        self._warned = False
        stats.include("cache_hits_l1", lambda: self._hits)
        _after_fork_in_child(self)

    def get(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """Credentials for ``slot``: from memory, from the fleet, or newly minted.

        ``content_type`` is the stream's, if this call is the one that registers it.

        Raises:
            RunFinished: the run has ended, so its streams cannot be opened.
            ConfigurationError: the authority cannot work as configured.
            StoreUnavailable: the authority cannot be reached, or its turn did not come.
        """
        # A tuple of strings rather than the slot: it is hashed and compared in C, which makes
        # this both fast and atomic towards other threads.
        entry = self._entries.get((slot.scope, slot.owner, slot.key))
        if entry is not None and self._clock() < entry.fresh_until:
            # Also the entry's place in the order of use.
            entry.used = self._hits = self._hits + 1
            return entry.credentials
        return self._get_slowly(slot, content_type)

    def peek(self, slot: Slot) -> Credentials | None:
        """This process's unexpired credentials for ``slot``, if it has any. No I/O."""
        entry = self._entries.get(_name(slot))
        if entry is None or not self._usable(entry.minted):
            return None
        return entry.credentials

    def evict(self, credentials: Credentials) -> bool:
        """Forget these credentials, here and in Redis; ``True`` if they were still installed.

        Does nothing where somebody has installed others since.
        """
        removed = False
        try:
            # Redis first: the other way round, another thread could miss in the process and
            # fetch them back from Redis in between.
            removed = self._shared.evict(credentials)
            self._outage.over()
        except StoreUnavailable as error:
            self._outage.noticed(error)
        finally:
            name = _name(credentials.slot)
            with self._lock:
                entry = self._entries.get(name)
                if entry is not None and entry.credentials is credentials:
                    del self._entries[name]
                    removed = True
        if removed:
            self._stats.add(evictions=1)
        return removed

    def reset(self) -> None:
        """Forget everything at process level; what the fleet shares stays."""
        with self._lock:
            self._entries.clear()
            # Flights go on for those who wait for them, but what they bring is not kept.
            self._flights.clear()

    def _get_slowly(self, slot: Slot, content_type: str) -> Credentials:
        name = _name(slot)
        while True:
            flight = own = _Flight()
            try:
                with self._lock:
                    entry = self._entries.get(name)
                    if entry is not None and self._usable(entry.minted):
                        entry.used = self._hits = self._hits + 1
                        self._refresh_if_due(slot, entry, content_type)
                        return entry.credentials
                    flight = self._flights.setdefault(name, own)
                if flight is own:
                    minted = self._obtain(slot, content_type)
                    self._land(own, name, minted)
                    return minted.credentials
            except BaseException as error:
                # A time limit may strike anywhere above; a flight that nobody leads must not
                # stay on the board.
                self._crash(own, name, error)
                raise
            try:
                return flight.landed.result()
            except _Abandoned:
                continue

    def _land(self, flight: _Flight, name: _Name, minted: Minted) -> None:
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]
                self._install(name, minted)
        flight.landed.set_result(minted.credentials)

    def _crash(self, flight: _Flight, name: _Name, error: BaseException) -> None:
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]
        if not flight.landed.done():
            # An interruption of this thread (exit, a greenlet's timeout) is not the others'.
            shared = error if isinstance(error, Exception) else _Abandoned()
            flight.landed.set_exception(shared)

    def _obtain(self, slot: Slot, content_type: str) -> Minted:
        for _ in range(_MOST_OVERRUNS):
            try:
                found = self._shared.find(slot, self._usable)
                outcome = found or self._shared.find_or_lock(slot, self._usable)
            except TurnNeverCame:
                raise
            except StoreUnavailable as error:
                self._outage.noticed(error)
                return self._initialize(slot, content_type)
            self._outage.over()
            if isinstance(outcome, Minted):
                return outcome
            minted = self._mint_under(outcome, content_type)
            if minted is not None:
                return minted
        raise TurnNeverCame(
            f"initializing stream {slot} took longer than the lock's lease {_MOST_OVERRUNS} times "
            "in a row; raise CELERY_STREAMS_LOCK_LEASE"
        )

    def _mint_under(self, lease: Lease, content_type: str) -> Minted | None:
        """Initialize as the lock's holder. ``None``: too slow, somebody else was let in."""
        try:
            minted = self._initialize(lease.slot, content_type)
        except BaseException:
            self._shared.release(lease)
            raise
        try:
            if self._shared.store(lease, minted, self._clock()):
                return minted
        except StoreUnavailable as error:
            self._outage.noticed(error)
            return minted
        logger.warning(
            "initializing stream %s took longer than the lock's lease, so the result is "
            "discarded; raise CELERY_STREAMS_LOCK_LEASE if this happens often",
            lease.slot,
        )
        return None

    def _initialize(self, slot: Slot, content_type: str) -> Minted:
        minted_at = self._clock()
        self._stats.add(initializes=1)
        minted = Minted(self._authority.initialize(slot, content_type=content_type), minted_at)
        if not self._usable(minted) and not self._warned:
            self._warned = True
            logger.warning(
                "credentials of stream %s had expired %.0f s ago when they were minted, so each "
                "serves for one batch only: this host's clock and the authority's differ (logged "
                "once per process)",
                slot,
                self._clock() - minted.credentials.expires_at,
            )
        return minted

    def _install(self, name: _Name, minted: Minted) -> None:
        """Remember at process level. Called with the lock held."""
        self._entries.pop(name, None)  # so that the newest come last
        self._entries[name] = _Entry(
            minted, minted.credentials, due_at(minted, self._ahead), self._hits
        )
        if len(self._entries) > self._size:
            # In steps of a sixteenth, so that the cost of ordering them is spread.
            surplus = len(self._entries) - self._size + self._size // 16
            by_use = sorted(self._entries, key=lambda each: self._entries[each].used)
            for oldest in by_use[:surplus]:
                del self._entries[oldest]

    def _usable(self, minted: Minted) -> bool:
        return self._clock() < minted.credentials.expires_at

    def _fresh(self, minted: Minted) -> bool:
        return self._clock() < due_at(minted, self._ahead)

    def _refresh_if_due(self, slot: Slot, entry: _Entry, content_type: str) -> None:
        """Called with the lock held."""
        if entry.refreshing or self._clock() < entry.fresh_until:
            return
        entry.refreshing = True
        entry.fresh_until = entry.credentials.expires_at
        try:
            self._refresher.submit(lambda: self._refresh(slot, entry, content_type))
        except RuntimeError as error:
            self._postpone(entry, error)

    def _refresh(self, slot: Slot, entry: _Entry, content_type: str) -> None:
        try:
            renewed = self._renew(slot, entry, content_type)
        except Exception as error:
            with self._lock:
                self._postpone(entry, error)
            return
        with self._lock:
            if renewed is None:
                self._postpone(entry, None)
            elif self._entries.get(_name(slot)) is entry:
                self._install(_name(slot), renewed)

    def _renew(self, slot: Slot, entry: _Entry, content_type: str) -> Minted | None:
        """Newer credentials, others' or our own; ``None`` while somebody else is at it."""

        try:
            outcome = self._shared.find_or_try_lock(slot, self._fresh)
        except StoreUnavailable as error:
            self._outage.noticed(error)
            minted: Minted | None = self._initialize(slot, content_type)
        else:
            self._outage.over()
            if isinstance(outcome, Held):
                return None
            if isinstance(outcome, Minted):
                return outcome
            minted = self._mint_under(outcome, content_type)
        if minted is not None:
            self._stats.add(refreshes=1)
        return minted

    def _postpone(self, entry: _Entry, error: Exception | None) -> None:
        """Try again later, as long as the credentials last. Called with the lock held."""
        expires_at = entry.credentials.expires_at
        entry.refreshing = False
        if isinstance(error, (RunFinished, ConfigurationError)):
            entry.fresh_until = expires_at  # no retry will help
        else:
            entry.fresh_until = retry_at(self._clock(), expires_at, failed=error is not None)
        if error is not None and not entry.complained:
            entry.complained = True
            logger.warning(
                "credentials of stream %s could not be refreshed ahead of their expiry; writing "
                "goes on with the current ones (%s: %s)",
                entry.credentials.slot,
                type(error).__name__,
                error,
            )

    def _after_fork(self) -> None:
        """In the child: what the parent's other threads were doing will never be finished."""
        self._lock = threading.Lock()
        self._flights = {}
        self._outage = Outage()
        self._shared.after_fork()
        self._refresher.after_fork()
        for entry in self._entries.values():
            entry.refreshing = False
            entry.fresh_until = due_at(entry.minted, self._ahead)


def _name(slot: Slot) -> _Name:
    return slot.scope, slot.owner, slot.key


def _after_fork_in_child(cache: CredentialCache) -> None:
    if not hasattr(os, "register_at_fork"):
        return
    reference: weakref.ref[Any] = weakref.ref(cache)

    def forget() -> None:
        if (still_there := reference()) is not None:
            still_there._after_fork()

    os.register_at_fork(after_in_child=forget)
