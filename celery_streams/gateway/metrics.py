"""``/metrics``: what this process has done, in Prometheus' format.

Nothing is counted for Prometheus alone where events are delivered: the hub counts plainly, and
the numbers are read when somebody asks. Each gateway has a registry of its own.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_streams.contracts import Head, Page
from celery_streams.errors import StoreUnavailable
from celery_streams.gateway.hub import Hub
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Replies, Scope, Send
from celery_streams.protocol import Creation, Post, Posted, ProtocolStore
from celery_streams.slots import Slot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_PREFIX = "celery_streams_gateway_"
#: What a token must allow reading.
RESOURCE = "metrics"
#: Upper bounds of the append histogram, seconds.
_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
#: Seconds for which the event loop's lateness is watched when somebody asks.
_SAMPLE = 0.02
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"})


class Latencies:
    """How long something took, counted in buckets."""

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound and how many did not exceed it, as the exposition wants them."""
        result, so_far = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            result.append((bound, float(so_far)))
        return result


@dataclass(slots=True)
class StoreCounts:
    """What a gateway's store has been asked: how long appends took, what failed."""

    appends: Latencies = field(default_factory=Latencies)
    failures: Counter[str] = field(default_factory=Counter)


class MeteredStore:
    """A :class:`~celery_streams.protocol.ProtocolStore` that counts in ``counts``.

    What is not defined here is the store's own.
    """

    def __init__(self, store: ProtocolStore, counts: StoreCounts) -> None:
        self._store = store
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, slot: Slot, creation: Creation) -> tuple[bool, Head]:
        """See :meth:`celery_streams.protocol.ProtocolStore.create`."""
        with self._watched("create"):
            return await self._store.create(slot, creation)

    async def post(self, slot: Slot, post: Post) -> Posted:
        """See :meth:`celery_streams.protocol.ProtocolStore.post`."""
        began = time.perf_counter()
        with self._watched("append"):
            posted = await self._store.post(slot, post)
        self._counts.appends.observe(time.perf_counter() - began)
        return posted

    async def read(self, slot: Slot, offset: int, *, limit: int = 500) -> Page:
        """See :meth:`celery_streams.protocol.ProtocolStore.read`."""
        with self._watched("read"):
            return await self._store.read(slot, offset, limit=limit)

    async def heads(self, slots: Sequence[Slot]) -> list[Head | Exception]:
        """See :meth:`celery_streams.protocol.ProtocolStore.heads`."""
        with self._watched("head"):
            heads = await self._store.heads(slots)
        if any(isinstance(head, StoreUnavailable) for head in heads):
            self._counts.failures["head"] += 1
        return heads

    async def aclose(self) -> None:
        """Close its connections, if it can."""
        close = getattr(self._store, "aclose", None)
        if close is not None:
            await close()

    @contextmanager
    def _watched(self, operation: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            self._counts.failures[operation] += 1
            raise


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are: those of every event loop the gateway has run on."""

    replies: Replies
    store: StoreCounts
    hubs: Callable[[], Iterable[Hub]]
    draining: Callable[[], bool]


class Metrics:
    """Answers ``/metrics``; needs prometheus-client only then."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._registry: CollectorRegistry | None = None
        self._lag = 0.0

    async def __call__(self, scope: Scope, send: Send) -> None:
        """Answer one scrape.

        Raises:
            Problem: 501 without prometheus-client.
        """
        try:
            from prometheus_client.exposition import choose_encoder
        except ImportError:
            raise Problem(
                501,
                "no-metrics",
                "metrics need prometheus-client: pip install 'celery-streams[gateway]'",
            ) from None
        if self._registry is None:
            self._registry = self._opened()
        began = time.perf_counter()
        await asyncio.sleep(_SAMPLE)
        self._lag = max(0.0, time.perf_counter() - began - _SAMPLE)
        accept = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"accept"), "")
        encode, content_type = choose_encoder(accept)
        headers = {"content-type": content_type, "cache-control": "no-store"}
        await self._sources.replies.reply(scope, send, 200, headers, encode(self._registry))

    def collect(self) -> Iterable[Metric]:
        """The numbers now: what makes this a collector of prometheus-client."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        hubs = list(self._sources.hubs())
        counts = [hub.counts for hub in hubs]
        gauges: dict[str, tuple[str, float]] = {
            "streams": ("Streams that somebody follows.", sum(len(hub.topics) for hub in hubs)),
            "subscribers": ("Open live reads.", sum(hub.followers for hub in hubs)),
            "catching_up": (
                "Of those, behind: they read the log.",
                sum(h.catching_up for h in hubs),
            ),
            "waiting_bytes": (
                "Bytes not yet taken by readers.",
                sum(h.waiting_bytes for h in hubs),
            ),
            "redis_connections": ("Open connections for requests.", _connections(hubs)),
            "event_loop_lag_seconds": ("How late the event loop was just now.", self._lag),
            "draining": ("1 while this process is about to stop.", self._sources.draining()),
        }
        counters: dict[str, tuple[str, float]] = {
            "events": ("Live events formatted.", sum(each.events for each in counts)),
            "deliveries": ("Events handed to subscribers.", sum(e.delivered for e in counts)),
            "delivered_bytes": ("Bytes of those.", sum(each.bytes for each in counts)),
            "body_bytes": ("Bytes of bodies that are no events.", self._sources.replies.sent),
            "cut_off": ("Subscribers that did not keep up.", sum(each.cut for each in counts)),
        }
        for name, (what, value) in gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, what, value=value)
        for name, (what, value) in counters.items():
            yield CounterMetricFamily(_PREFIX + name, what, value=value)
        requests = CounterMetricFamily(
            f"{_PREFIX}requests", "Requests answered.", labels=["method", "status"]
        )
        for (method, status), count in sorted(self._requests().items()):
            requests.add_metric([method, str(status)], count)
        yield requests
        failures = CounterMetricFamily(
            f"{_PREFIX}store_errors", "Failures to reach the store.", labels=["operation"]
        )
        for operation in ("append", "create", "head", "read"):
            failures.add_metric([operation], self._sources.store.failures[operation])
        yield failures
        appends = self._sources.store.appends
        yield HistogramMetricFamily(
            f"{_PREFIX}append_seconds",
            "From an append's request to its durability.",
            buckets=appends.buckets(),
            sum_value=appends.total,
        )

    def _requests(self) -> Counter[tuple[str, int]]:
        # A client chooses its method; it must not choose how many series there are.
        known: Counter[tuple[str, int]] = Counter()
        for (method, status), count in self._sources.replies.begun.items():
            known[method if method in _METHODS else "other", status] += count
        return known

    def _opened(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(self)
        return registry


def _connections(hubs: Iterable[Hub]) -> int:
    return sum(getattr(hub.store, "connections", 0) for hub in hubs)
