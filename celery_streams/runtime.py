"""What one process holds at run time: connections, caches, the flusher. One per process id."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TypeVar, cast

from celery_streams.back_ends import BackEnds
from celery_streams.contracts import (
    JSON,
    AsyncStore,
    Attempt,
    Authority,
    PipelinedStore,
    Producer,
    Store,
)
from celery_streams.credentials.authority import RedisAuthority
from celery_streams.credentials.cache import CredentialCache
from celery_streams.errors import ConfigurationError, StoreUnavailable, StreamError
from celery_streams.protocol import ProtocolStore
from celery_streams.redis.address import Address
from celery_streams.redis.client import AsyncRedisLink, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.redis.listening import ChannelListener
from celery_streams.redis.scripts import load_script
from celery_streams.runs.recorded import RecordedStore
from celery_streams.runs.registry import RunRegistry
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stats import Stats
from celery_streams.stores.protocol_store import RedisProtocolStore
from celery_streams.stores.redis import RedisStore
from celery_streams.stores.redis_async import AsyncRedisStore
from celery_streams.subscriptions.store import SubscriptionStore
from celery_streams.writing.channel import Channel
from celery_streams.writing.flusher import Flusher

logger = logging.getLogger("celery_streams.runtime")

B = TypeVar("B")

#: Bytes that framing adds to a chunk in a batch, at most.
FRAMING_BYTES = 4


def _import_early() -> None:
    """Do now what threads would otherwise import at their first use.

    A module that one thread is importing while another forks stays locked in the child for
    ever, and whoever needs it there hangs. Reading package data imports, and so does the first
    look-up of a host name.
    """
    "localhost".encode("idna")
    for room in ("credentials", "redis", "runs", "stores", "subscriptions"):
        package = f"celery_streams.{room}"
        for script in files(package).joinpath("lua").iterdir():
            load_script(package, script.name.removesuffix(".lua"))


_import_early()


#: Said of an end for which no second attempt helps.
_UNRECORDED = (
    "the end of run %s (%s) cannot be recorded; its readers learn of it from its lease, which is "
    "renewed no more: %s"
)
#: Ends of runs that wait for the store, at most. Of an older one the run's lease tells.
_MOST_ENDINGS = 1000


@dataclass(frozen=True, slots=True)
class Ending:
    """A run's end that has to be recorded."""

    attempt: Attempt
    state: str
    always: bool = False


@dataclass(slots=True)
class Living:
    """The attempts of this process whose leases are renewed, and ends not recorded yet."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    endings: deque[Ending] = field(default_factory=lambda: deque(maxlen=_MOST_ENDINGS))
    #: Called with each tick, for as long as they are here.
    beats: set[Callable[[], object]] = field(default_factory=set)


class Runtime:
    """Everything with a connection, a thread or a lock. Never crosses a fork."""

    def __init__(self, address: Address, settings: StreamsSettings, back_ends: BackEnds) -> None:
        self.settings = settings
        self.stats = Stats()
        self.layout = Layout(settings.prefix)
        self._address = address
        self.link = RedisLink(address, settings)
        self.authority: Authority = self._made(back_ends.authority, Authority, RedisAuthority)
        self.store: Store = self._made(back_ends.store, Store, RedisStore)
        self.settings = settings = _within_limits(settings, self.store)
        end = None if self.records_runs else getattr(self.authority, "end", None)
        self.registry = RunRegistry(self.link, self.layout, settings, end)
        self.cache = CredentialCache(self.authority, self.link, self.layout, settings, self.stats)
        self.listener = ChannelListener(self.link)
        self._living = Living()
        self._lock = threading.Lock()
        self.flusher = Flusher(
            self.store if self.records_runs else RecordedStore(self.store, self.registry),
            self.cache,
            settings,
            self.stats,
            tick=self._keep_alive,
            tick_interval=min(settings.orphan_timeout / 3, 10.0),
            at_rest=self._let_go,
        )
        self._depth = self.store.max_in_flight if isinstance(self.store, PipelinedStore) else 1
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._async_stores: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, AsyncRedisStore
        ] = weakref.WeakKeyDictionary()

    def open_channel(self, slot: Slot, producer: Producer, content_type: str = JSON) -> Channel:
        """A new way into ``slot`` for one producer."""
        channel = Channel(
            slot, producer, content_type, self.settings, self.flusher.schedule, self._depth
        )
        self._channels.add(channel)
        return channel

    def async_store(self) -> AsyncStore:
        """The running event loop's store (asyncio connections belong to one loop).

        Raises:
            ConfigurationError: the configured store can be used by threads only.
        """
        if not isinstance(self.store, RedisStore):
            for_event_loop = getattr(self.store, "for_event_loop", None)
            if for_event_loop is None:
                raise ConfigurationError(
                    f"the store {type(self.store).__name__} cannot be read from an event loop: it "
                    "has no method for_event_loop() that returns an AsyncStore"
                )
            return cast("AsyncStore", for_event_loop())
        loop = asyncio.get_running_loop()
        store = self._async_stores.get(loop)
        if store is None:
            # A store's connections hold on to their loop: this is where closed ones are let go.
            for closed in [each for each in self._async_stores if each.is_closed()]:
                del self._async_stores[closed]
            link = AsyncRedisLink(self._address, self.settings)
            store = AsyncRedisStore(link, self.layout, self.settings)
            self._async_stores[loop] = store
        return store

    def protocol_store(self) -> ProtocolStore:
        """The running event loop's store as the gateway uses it.

        Raises:
            ConfigurationError: the configured store has no such side.
        """
        if not isinstance(self.store, RedisStore):
            for_gateway = getattr(self.store, "for_gateway", None)
            if for_gateway is None:
                raise ConfigurationError(
                    f"the store {type(self.store).__name__} cannot be served by the gateway: it "
                    "has no method for_gateway() that returns a ProtocolStore"
                )
            return cast("ProtocolStore", for_gateway())
        settings = self.settings
        link = AsyncRedisLink(self._address, settings, settings.gateway_redis_connections)
        return RedisProtocolStore(link, self.layout, settings)

    @property
    def where(self) -> str:
        """Where chunks and runs are, without passwords."""
        address = getattr(self.store, "address", None)
        return str(self._address) if address is None else f"{address}, runs on {self._address}"

    @property
    def has_subscriptions(self) -> bool:
        """Whether there can be subscriptions: other stores than ours have none."""
        return isinstance(self.store, RedisStore)

    def subscription_store(self) -> SubscriptionStore:
        """The running event loop's subscriptions.

        Raises:
            ConfigurationError: the configured store has none.
        """
        if not self.has_subscriptions:
            raise ConfigurationError(
                f"there are no subscriptions on the store {type(self.store).__name__}"
            )
        settings = self.settings
        link = AsyncRedisLink(self._address, settings, settings.gateway_redis_connections)
        return SubscriptionStore(link, self.layout, settings)

    @property
    def records_runs(self) -> bool:
        """Whether the store itself records who writes, and closes streams at their run's end."""
        return isinstance(self.store, RedisStore)

    def enter(self, attempt: Attempt) -> None:
        """Renew the attempt's lease on its run until :meth:`leave`."""
        with self._lock:
            self._living.attempts[attempt.attempt_id] = attempt
        self.flusher.keep_ticking()

    def leave(self, attempt: Attempt) -> None:
        """Stop renewing the attempt's lease."""
        with self._lock:
            self._living.attempts.pop(attempt.attempt_id, None)

    def beat(self, renew: Callable[[], object]) -> None:
        """Call ``renew`` every ``orphan_timeout / 3`` seconds (10 at most) until :meth:`rest`."""
        with self._lock:
            self._living.beats.add(renew)
        self.flusher.keep_ticking()

    def rest(self, renew: Callable[[], object]) -> None:
        """Do not call ``renew`` any more."""
        with self._lock:
            self._living.beats.discard(renew)

    def async_link(self) -> AsyncRedisLink:
        """A link for the running event loop, with a gateway's number of connections."""
        return AsyncRedisLink(self._address, self.settings, self.settings.gateway_redis_connections)

    def end_run(self, ending: Ending) -> None:
        """Record the end of a run and close its streams: now, or as soon as the store is back."""
        run_id, state = ending.attempt.run_id, ending.state
        try:
            self._end_run(ending)
        except StoreUnavailable as error:
            logger.warning(
                "could not close the streams of run %s (%s) yet, will try again: %s",
                run_id,
                state,
                error,
            )
            with self._lock:
                self._living.endings.append(ending)
            self.flusher.keep_ticking()
        except StreamError as error:
            logger.warning(_UNRECORDED, run_id, state, error)

    def _end_run(self, ending: Ending) -> None:
        always = ending.always or not self.records_runs
        verdict = self.registry.finish(ending.attempt, ending.state, always=always)
        if verdict == "SUPERSEDED":
            logger.warning(
                "an earlier attempt of run %s ended (%s) while a later one is running; "
                "its streams stay open",
                ending.attempt.run_id,
                ending.state,
            )

    def after_fork(self) -> None:
        """In a forked child: end the parent's writers, which user code may still hold."""
        for channel in list(self._channels):
            channel.after_fork()

    def drain(self) -> None:
        """Flush everything this process has accepted (at exit)."""
        for channel in list(self._channels):
            if channel.unsent and channel.error is None:
                try:
                    channel.flush(self.settings.drain_timeout)
                except StreamError as error:
                    logger.error("at exit: %s", error)

    def close(self) -> None:
        """Make durable what this process has accepted, and close its connections."""
        self.drain()
        self.flusher.retire(0 if self._is_busy() else self.settings.socket_timeout)
        self.listener.close()
        for plane in (self.store, self.authority):
            if (shut := getattr(plane, "shut", None)) is not None:
                shut()
        self.link.close()

    def _is_busy(self) -> bool:
        """Whether the flusher goes on after a drain: the thread ends when that is over."""
        with self._lock:
            living = self._living
            if living.attempts or living.endings or living.beats:
                return True
        return any(channel.unsent and channel.error is None for channel in list(self._channels))

    def _let_go(self) -> None:
        """Close the connections that the flusher alone has used."""
        if isinstance(self.store, RedisStore):
            self.store.shut()
        self.link.close()

    def _keep_alive(self) -> bool:
        """The flusher's tick; answers whether there is anything left to do at the next one."""
        with self._lock:
            attempts = list(self._living.attempts.values())
            endings = list(self._living.endings)
            self._living.endings.clear()
            beats = list(self._living.beats)
        for renew in beats:
            try:
                renew()
            except StreamError as error:
                logger.warning("could not show that a chat turn is alive: %s", error)
        self._end_those_that_waited(endings)
        if attempts:
            for attempt, alive in zip(attempts, self.registry.renew(attempts), strict=True):
                if alive is False:
                    self.leave(attempt)
        with self._lock:
            living = self._living
            return bool(living.attempts or living.endings or living.beats)

    def _end_those_that_waited(self, endings: list[Ending]) -> None:
        """Until the store fails again: then the others wait on, without a word each."""
        for place, ending in enumerate(endings):
            try:
                self._end_run(ending)
            except StoreUnavailable:
                with self._lock:
                    self._living.endings.extendleft(reversed(endings[place:]))
                return
            except StreamError as error:
                logger.warning(_UNRECORDED, ending.attempt.run_id, ending.state, error)

    def _made(
        self,
        given: B | Callable[[RedisLink, Layout, StreamsSettings], B] | None,
        protocol: type,
        default: Callable[[RedisLink, Layout, StreamsSettings], B],
    ) -> B:
        """A back end as given, or what its factory (the default's, too) makes of the link."""
        # A class that is given as the factory has the protocol's methods as well.
        if isinstance(given, protocol) and not isinstance(given, type):
            return cast("B", given)
        factory = cast("Callable[[RedisLink, Layout, StreamsSettings], B]", given or default)
        return factory(self.link, self.layout, self.settings)


def _within_limits(settings: StreamsSettings, store: Store) -> StreamsSettings:
    """The settings, with chunks and batches no larger than ``store`` takes.

    It says so with ``max_chunk_bytes`` (one serialized chunk) and ``max_payload_bytes`` (a
    framed batch). So a chunk that is too large is refused before anything is sent.
    """
    most = getattr(store, "max_payload_bytes", None)
    if most is None:
        return settings
    chunks = min(settings.batch_chunks, most // (4 * FRAMING_BYTES))
    return settings.model_copy(
        update={
            "max_chunk_bytes": min(settings.max_chunk_bytes, store.max_chunk_bytes),  # type: ignore[attr-defined]
            "batch_chunks": chunks,
            "batch_bytes": min(settings.batch_bytes, most - FRAMING_BYTES * chunks),
        }
    )
