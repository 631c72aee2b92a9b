"""The one thread of a process that sends: :class:`Flusher`."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from celery_streams.contracts import Append, Appended, Credentials, PipelinedStore, Store
from celery_streams.credentials.cache import CredentialCache
from celery_streams.errors import CredentialsRejected, StreamFenced
from celery_streams.settings import StreamsSettings
from celery_streams.stats import Stats
from celery_streams.writing.channel import Channel
from celery_streams.writing.policy import Action, decide, final

logger = logging.getLogger("celery_streams.writing")

#: A batch that was sent: whose, how, and what the store says of it.
Report = tuple[Channel, Append, "Appended | Exception"]

#: Channels sent in one round trip, and threads that may wait for credentials at once.
MAX_CHANNELS = 64
MAX_ACQUIRING = 16


class Flusher:
    """Sends what the channels of this process hold, in turn, many in one round trip.

    A channel is in exactly one place: idle, ready, waiting for credentials, or resting (after a
    failure, or between two batches in flight). Each ready channel gets one batch a round, so a
    hot stream cannot starve a quiet one. Credentials a slot does not have yet are obtained in a
    thread of their own, because an authority may be slow and other streams must not wait for it.

    A :class:`~celery_streams.contracts.PipelinedStore` is handed the batches and answers later;
    from any other store the thread waits for the answers.

    The thread is a daemon started at first use, and belongs to the process that started it.

    Args:
        store, cache: where batches go, and with which credentials.
        settings: ``retry_timeout``.
        stats: counts appends, chunks, bytes, retries, fenced.
        tick: called about every ``tick_interval`` seconds while :meth:`keep_ticking` is on
            (lease renewal).
        at_rest: called when the thread ends, to close what it alone used; must not wait.
    """

    def __init__(
        self,
        store: Store,
        cache: CredentialCache,
        settings: StreamsSettings,
        stats: Stats,
        *,
        tick: Callable[[], bool],
        tick_interval: float,
        at_rest: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._pipelined = store if isinstance(store, PipelinedStore) else None
        self._cache = cache
        self._deadline = settings.retry_timeout
        self._stats = stats
        self._tick = tick
        self._tick_interval = tick_interval
        self._at_rest = at_rest
        self._next_tick: float | None = None
        # Task threads, which a time limit may interrupt anywhere, enter by the lock itself: it
        # lets go in any case, a Condition's `with` may not.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._ready: deque[Channel] = deque()
        self._resting: list[tuple[float, int, Channel]] = []
        self._cold: deque[Channel] = deque()
        self._reports: deque[Report] = deque()
        self._acquiring = 0
        self._order = itertools.count()
        self._running = False
        self._retired = False
        self._ended = threading.Event()  # set while no thread runs
        self._ended.set()

    def schedule(self, channel: Channel) -> None:
        """The channel has something to send."""
        with self._lock:
            if not channel.queued:
                self._enqueue(channel)
            self._start_or_wake()

    def keep_ticking(self) -> None:
        """Call ``tick`` from now on, until it answers ``False``."""
        with self._lock:
            if self._next_tick is None:
                self._next_tick = time.monotonic() + self._tick_interval
                self._start_or_wake()

    def retire(self, timeout: float) -> None:
        """End the thread as soon as it has nothing to do; waits ``timeout`` seconds for that.

        What is written afterwards is sent by another thread, which ends the same way.
        """
        with self._lock:
            self._retired = True
            if self._next_tick is not None:
                self._next_tick = time.monotonic()  # there may be nothing left to tick for
            self._wake.notify()
        self._ended.wait(timeout)

    def _enqueue(self, channel: Channel) -> None:
        # In this order: interrupted in between, it is there twice, which does no harm.
        self._ready.append(channel)
        channel.queued = True

    def _start_or_wake(self) -> None:
        if self._running:
            self._wake.notify()
        else:
            # Not running until the thread itself says so: starting it may be interrupted.
            threading.Thread(target=self._run, name="celery-streams-flusher", daemon=True).start()

    def _run(self) -> None:
        with self._lock:
            if self._running:
                return  # one flusher a process: only so is each batch sent by one
            self._running = True
            self._ended.clear()
        while not (self._retired and self._done()):
            try:
                self._maybe_tick()
                channels = self._next_round()
                self._take_reports()
                self._send(channels)
            except Exception:
                # A bug must not silence every stream of the process for good.
                logger.exception("unexpected failure in the flusher; it goes on")
                time.sleep(0.1)

    def _done(self) -> bool:
        """Whether the thread is to end, having nothing to do."""
        with self._lock:
            if self._ready or self._resting or self._reports or self._next_tick is not None:
                return False
            try:
                self._at_rest()
            except Exception:
                logger.warning("could not close the flusher's connections", exc_info=True)
            self._running = False
            self._ended.set()
            return True

    def _next_round(self) -> list[Channel]:
        """Wait until somebody is ready, has an answer or a tick is due; at most
        ``MAX_CHANNELS`` that are ready.
        """
        with self._lock:
            while True:
                now = time.monotonic()
                while self._resting and self._resting[0][0] <= now:
                    self._ready.append(heapq.heappop(self._resting)[2])
                if self._ready:
                    count = min(len(self._ready), MAX_CHANNELS)
                    channels = [self._ready.popleft() for _ in range(count)]
                    for channel in channels:
                        channel.queued = False
                    return channels
                due = [moment for moment in (self._next_tick,) if moment is not None]
                if self._resting:
                    due.append(self._resting[0][0])
                if self._reports or (due and min(due) <= now) or (self._retired and not due):
                    return []
                self._wake.wait(min(due) - now if due else None)

    def _maybe_tick(self) -> None:
        if self._next_tick is None or time.monotonic() < self._next_tick:
            return
        # Rescheduled before the call, so that keep_ticking() during it is not forgotten.
        self._next_tick = time.monotonic() + self._tick_interval
        try:
            if not self._tick():
                self._next_tick = None
        except Exception:
            logger.warning("could not renew the leases of running tasks", exc_info=True)

    def _send(self, channels: list[Channel]) -> None:
        sending: list[Channel] = []
        appends: list[Append] = []
        for channel in dict.fromkeys(channels):
            if channel.refused is not None:
                continue  # until all that is in flight has been answered
            credentials = self._credentials(channel)
            if credentials is None:
                continue
            batch = channel.take()
            if isinstance(batch, float):
                self._rest(channel, batch)
            elif batch is not None:
                sending.append(channel)
                appends.append(Append(channel.slot, batch, channel.producer, credentials))
        if not appends:
            return
        for channel in sending:
            channel.unanswered += 1
        if self._pipelined is not None:
            self._hand_over(self._pipelined, sending, appends)
            return
        try:
            results = self._store.append_many(appends)
        except Exception as error:
            results = [error] * len(appends)
        for report in zip(sending, appends, results, strict=True):
            self._reported(*report)

    def _credentials(self, channel: Channel) -> Credentials | None:
        """For the channel's next batch; ``None`` if it has to wait for them, or has failed."""
        granted, channel.granted = channel.granted, None
        if self._cache.peek(channel.slot) is None:
            # What was obtained serves once even if the cache has no room for it, or this host's
            # clock takes it for expired: or the channel would ask for ever, and never send.
            if granted is None and not channel.unanswered:
                self._obtain_credentials(channel)
            return granted
        try:
            # A hit; refreshes ahead of expiry.
            return self._cache.get(channel.slot, content_type=channel.content_type)
        except Exception as error:  # expired or evicted since the look
            self._failed(channel, error, None)
            return None

    def _hand_over(
        self, store: PipelinedStore, channels: list[Channel], appends: list[Append]
    ) -> None:
        """Let the store send them, and those who have more have their turn again."""
        try:
            store.submit(appends, partial(self._answered, channels, appends))
        except Exception as error:
            for channel, append in zip(channels, appends, strict=True):
                self._reported(channel, append, error)
            return
        more = [channel for channel in channels if channel.ready]
        with self._lock:
            for channel in more:
                if not channel.queued:
                    self._enqueue(channel)

    def _answered(
        self,
        channels: list[Channel],
        appends: list[Append],
        results: Sequence[tuple[int, Appended | Exception]],
    ) -> None:
        """The store's answers, by the place of each append; on a thread of the store's."""
        with self._lock:
            self._reports.extend(
                (channels[place], appends[place], result) for place, result in results
            )
            self._start_or_wake()

    def _take_reports(self) -> None:
        while self._reports:
            self._reported(*self._reports.popleft())

    def _reported(self, channel: Channel, append: Append, result: Appended | Exception) -> None:
        """What has become of a batch. After one that failed, those behind it are to be sent
        again whatever is said of them, once nothing is under way any more.
        """
        channel.unanswered -= 1
        if channel.refused is None:
            if isinstance(result, Appended):
                self._succeeded(channel, result)
                return
            channel.refused = result, append.credentials
        if channel.unanswered == 0:
            error, used = channel.refused
            channel.refused = None
            channel.send_again()
            self._failed(channel, error, used)

    def _succeeded(self, channel: Channel, appended: Appended) -> None:
        channel.failures = 0
        chunks, size, more = channel.acknowledged(appended)
        self._stats.add(appends=1, chunks=chunks, bytes=size)
        if more:
            with self._lock:
                if not channel.queued:
                    self._enqueue(channel)

    def _failed(self, channel: Channel, error: Exception, used: Credentials | None) -> None:
        now = time.monotonic()
        if channel.failures == 0:
            channel.failing_since = now
        channel.failures += 1
        failing_for = now - channel.failing_since
        decision = decide(error, channel.failures, failing_for, self._deadline)
        if used is not None and decision.action is not Action.RETRY:
            self._evict(used)
        if decision.action is Action.END:
            if isinstance(error, StreamFenced):
                self._stats.add(fenced=1)
            logger.warning("writing to %s ends: %s", channel.slot, error)
            channel.fail(final(error, failing_for))
            return
        self._stats.add(retries=1)
        if channel.failures in (2, 8):  # the first is as a rule a connection gone stale
            level = logging.INFO if isinstance(error, CredentialsRejected) else logging.WARNING
            logger.log(level, "sending to %s again after: %s", channel.slot, error)
        self._rest(channel, now + decision.pause)

    def _rest(self, channel: Channel, until: float) -> None:
        with self._lock:
            heapq.heappush(self._resting, (until, next(self._order), channel))
            channel.queued = True
            self._start_or_wake()

    def _evict(self, credentials: Credentials) -> None:
        try:
            self._cache.evict(credentials)
        except Exception:
            logger.warning("could not evict credentials of %s", credentials.slot, exc_info=True)

    def _obtain_credentials(self, channel: Channel) -> None:
        with self._lock:
            self._cold.append(channel)
            channel.queued = True
            if self._acquiring >= MAX_ACQUIRING:
                return
            self._acquiring += 1
        try:
            threading.Thread(
                target=self._acquire_all, name="celery-streams-initialize", daemon=True
            ).start()
        except RuntimeError:  # no more threads at interpreter exit, or none left at all
            self._acquire_all()

    def _acquire_all(self) -> None:
        """Obtain credentials for cold channels until there is none left."""
        while True:
            with self._lock:
                if not self._cold:
                    self._acquiring -= 1
                    return
                channel = self._cold.popleft()
            try:
                channel.granted = self._cache.get(channel.slot, content_type=channel.content_type)
            except Exception as error:
                self._failed(channel, error, None)
            else:
                with self._lock:
                    self._enqueue(channel)
                    self._start_or_wake()
