"""Live fan-out: one hub a process, one topic a stream that anybody follows.

The hub keeps the topics and the one feed they live on. Silence is not trusted: idle topics are
compared with their streams now and then, and a silent run is inquired into.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine

from celery_streams.contracts import Head
from celery_streams.errors import StoreUnavailable, StreamError, StreamNotFound
from celery_streams.gateway import wire
from celery_streams.gateway.topics import Counts, Topic
from celery_streams.protocol import Feed, ProtocolStore
from celery_streams.redis.outages import Outage
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

logger = logging.getLogger("celery_streams.gateway")

#: Seconds between the hub's rounds.
_TICK = 0.25
#: Seconds of silence after which a follower gets a sign of life.
_HEARTBEAT = 15.0
#: Seconds that a client has to take its last events once its time is over.
_PATIENCE = 10.0
#: Heads asked for in one round trip.
_HEADS = 500
#: Runs whose end is looked into at the same time.
_INQUIRIES = 4


class Hub:
    """Everything that is followed in this process, over one feed.

    ``inquire`` finds out whether a silent run is over (and closes its streams if so).
    """

    def __init__(
        self,
        store: ProtocolStore,
        settings: StreamsSettings,
        inquire: Callable[[str], Awaitable[str | None]],
    ) -> None:
        self.store = store
        self.buffer = settings.gateway_subscriber_buffer
        self.topics: dict[Slot, Topic] = {}
        self.counts = Counts()
        self.draining = False
        self._recheck = settings.recheck_interval
        self._inquire = inquire
        self._inquiring: set[str] = set()
        self._outage = Outage(logger, "looks at idle streams")
        self._feed: Feed = store.feed()
        self._ticking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def topic(self, slot: Slot) -> Topic:
        """The topic of a stream, listened to: what happens after this returns is delivered.

        Raises:
            StoreUnavailable: it cannot be listened to now.
        """
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        topic = self.topics.get(slot)
        if topic is None:
            topic = self.topics[slot] = Topic(self, slot)
            topic.listening = asyncio.create_task(self._feed.listen(slot, topic.deliver))
        assert topic.listening is not None
        try:
            await asyncio.shield(topic.listening)
        except StreamError:
            if self.topics.get(slot) is topic:
                del self.topics[slot]
            raise
        if self.topics.get(slot) is not topic:  # abandoned meanwhile
            return await self.topic(slot)
        return topic

    def abandon(self, topic: Topic) -> None:
        """Nobody follows the topic any more."""
        if self.topics.get(topic.slot) is topic and not topic.followers:
            del self.topics[topic.slot]
            self._spawn(self._feed.ignore(topic.slot))

    async def over(self, slot: Slot) -> str | None:
        """How the run of a stream ended, if it has a run and that is over."""
        return await self._inquire(slot.owner) if slot.scope == "run" else None

    @property
    def followers(self) -> int:
        """How many readers follow a stream now."""
        return sum(len(topic.followers) for topic in self.topics.values())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of events that wait for readers who do not take them."""
        return sum(each.size for topic in self.topics.values() for each in topic.followers)

    @property
    def catching_up(self) -> int:
        """How many readers are at the log, behind the live events."""
        return sum(each.stale for topic in self.topics.values() for each in topic.followers)

    def drain(self) -> None:
        """End every live read, so that clients reconnect elsewhere. New ones end at once."""
        self.draining = True
        for topic in self.topics.values():
            for follower in topic.followers:
                follower.finished = True
                follower.wake()

    async def aclose(self) -> None:
        """Stop; followers are ended."""
        self.drain()
        if self._ticking is not None:
            self._ticking.cancel()
        await self._feed.aclose()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                now = time.monotonic()
                self._pulse(now)
                for topic in list(self.topics.values()):
                    await topic.keep_alive(now)
                await self._look(now)
            except StoreUnavailable as error:
                self._outage.failed(error)
            except Exception:
                logger.exception("a round of the hub failed")

    def _pulse(self, now: float) -> None:
        for topic in list(self.topics.values()):
            if not topic.followers and now - topic.heard_at > _HEARTBEAT:
                self.abandon(topic)  # whoever asked for it never followed
            for follower in topic.followers:
                if now >= follower.deadline:
                    follower.finished = True
                    follower.wake()
                    if now >= follower.deadline + _PATIENCE:
                        follower.cut_off()
                elif now - follower.sent_at >= _HEARTBEAT and not follower.stale:
                    follower.push(wire.HEARTBEAT, follower.offset)
                    follower.sent_at = now

    async def _look(self, now: float) -> None:
        """Compare silent topics with their streams, and those that say odd things."""
        before = now - self._recheck
        silent = [
            topic
            for topic in self.topics.values()
            if topic.heard_at <= before or (topic.doubtful and topic.looked_at <= before)
        ]
        for at in range(0, len(silent), _HEADS):
            batch = silent[at : at + _HEADS]
            heads = await self.store.heads([topic.slot for topic in batch])
            self._outage.over()
            for topic, head in zip(batch, heads, strict=True):
                topic.heard_at = topic.looked_at = now
                if isinstance(head, Head):
                    topic.announce(head)
                elif isinstance(head, StreamNotFound):
                    topic.announce_missing(head.run_state)
                elif topic.head is not None and isinstance(head, StreamError):
                    topic.deliver(None)  # reading will say what is wrong
                self._suspect(topic, head)

    def _suspect(self, topic: Topic, head: Head | Exception) -> None:
        """Ask what became of a run whose worker does not say."""
        run_id = topic.slot.owner
        state = head.run_state if isinstance(head, Head) else "PENDING"
        closed = isinstance(head, Head) and head.closed is not None
        if topic.slot.scope != "run" or closed or state == "STARTED":
            return
        if run_id in self._inquiring or len(self._inquiring) >= _INQUIRIES:
            return
        self._inquiring.add(run_id)

        async def inquire() -> None:
            try:
                if await self._inquire(run_id) is not None:
                    topic.deliver(None)
            except StreamError as error:
                logger.info("cannot tell whether run %s is over: %s", run_id, error)
            finally:
                self._inquiring.discard(run_id)

        self._spawn(inquire())
