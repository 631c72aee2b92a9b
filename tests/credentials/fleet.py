"""Members of a fleet, in this process or in others, that need credentials."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from celery_streams.contracts import JSON, Credentials
from celery_streams.credentials import CredentialCache
from celery_streams.redis.address import parse_address
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stats import Stats
from tests.servers.children import eventually

LAYOUT = Layout("cs")
SLOT = Slot.run("run-1")
EARLIER = Slot.run("run-0")

Hook = Callable[[Slot], object]


def processes() -> ForkServerContext:
    """Processes that share nothing with pytest's, yet start in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Clock:
    """Time that tests set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class CountingAuthority:
    """Mints anything, and counts its calls in Redis, where every process's calls add up.

    ``during`` is called while it initializes; what it raises is the outcome.
    """

    def __init__(
        self,
        url: str,
        *,
        life: float = 3600.0,
        clock: Callable[[], float] = time.time,
        during: Hook = lambda slot: None,
    ) -> None:
        self.link = RedisLink(parse_address(url), StreamsSettings(url=url))
        self.life = life
        self.clock = clock
        self.during = during

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        number = self.link.client.incr(_counter(slot))
        self.during(slot)
        return Credentials(slot, f"mint-{number}", f"token-{number}", self.clock() + self.life)

    def revoke(self, slot: Slot) -> int:
        return 0

    def calls(self, slot: Slot = SLOT) -> int:
        """How often any process has called ``initialize`` for ``slot``."""
        return int(self.link.client.get(_counter(slot)) or 0)


class Member:
    """One process's cache, with its own connections, and its authority."""

    def __init__(
        self,
        url: str,
        *,
        cache_url: str | None = None,
        clock: Callable[[], float] = time.time,
        life: float = 3600.0,
        during: Hook = lambda slot: None,
        link_class: type[RedisLink] = RedisLink,
        **overrides: Any,
    ) -> None:
        self.settings = StreamsSettings(**{"url": url, "secret": "test secret", **overrides})
        self.authority = CountingAuthority(url, life=life, clock=clock, during=during)
        self.link = link_class(parse_address(cache_url or url), self.settings)
        self.stats = Stats()
        self.cache = CredentialCache(
            self.authority, self.link, LAYOUT, self.settings, self.stats, clock=clock
        )

    @property
    def get(self) -> Callable[..., Credentials]:
        return self.cache.get

    def sealed(self, slot: Slot = SLOT) -> bytes | None:
        """What the fleet shares, as it is stored."""
        value: Any = self.link.client.get(LAYOUT.cached_credentials(slot))
        return bytes(value) if value is not None else None

    def locked(self, slot: Slot = SLOT) -> bool:
        return bool(self.link.client.exists(LAYOUT.lock(slot)))

    def close(self) -> None:
        self.link.close()
        self.authority.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` in ``count`` threads at the same time; their results or exceptions."""
    results: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = work()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def _counter(slot: Slot) -> str:
    return f"test/initializes/{slot}"


def listeners(link: RedisLink) -> int:
    """How many subscribers wait for the slot's holder."""
    ((_, count),) = link.client.execute_command("PUBSUB SHARDNUMSUB", LAYOUT.wake(SLOT))
    return int(count)


class Waiters:
    """Processes that wait for a slot's credentials, all of them asleep when they come.

    Within the block only. What they found they leave in shared memory, and none does anything
    else until all are awake: whoever reports would take the processor from those still waking.

    ``target`` runs in each, with the server's URL, its place and the :class:`Board`.
    """

    def __init__(self, url: str, count: int, target: Callable[..., None] | None = None) -> None:
        context = processes()
        self.board = Board(context, count)
        self._link = RedisLink(parse_address(url), StreamsSettings(url=url))
        self._children = [
            context.Process(
                target=target or _wait_for_wake, args=(url, place, self.board), daemon=True
            )
            for place in range(count)
        ]

    def gather(self) -> None:
        """Returns once all listen, and sleep."""
        for child in self._children:
            child.start()
        wanted = len(self._children)
        eventually(lambda: listeners(self._link) == wanted, "all listen", timeout=60)
        for child in self._children:  # not on their way there
            eventually(lambda child=child: _sleeps(child.pid), "all sleep", timeout=60)

    def dismiss(self) -> float:
        """Wait until all are awake, and let them go; when the last one woke."""
        eventually(lambda: all(self.board.woken_at), "all wake", timeout=60)
        for _ in self._children:
            self.board.dismissed.release()
        for child in self._children:
            child.join(30)
        return max(self.board.woken_at)

    def outcomes(self) -> set[tuple[str, int]]:
        """The different mints they got, with the times they waited for the lock."""
        return {
            (f"mint-{mint}", waits)
            for mint, waits in zip(self.board.mints, self.board.waits, strict=True)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._link.close()
        for child in self._children:
            if child.is_alive():
                child.kill()


class Board:
    """Where each of several processes writes, in its place, without waking anybody."""

    def __init__(self, context: ForkServerContext, places: int) -> None:
        self.woken_at: Any = context.RawArray("d", places)
        self.mints: Any = context.RawArray("i", places)
        self.waits: Any = context.RawArray("i", places)
        self.dismissed = context.Semaphore(0)


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


# -- what other processes run ------------------------------------------------------------------


def get_at_once(url: str, latency: float, barrier: Any, results: Any) -> None:
    """Meet the others at the barrier, get credentials; report the mint and the time.

    The slot is cold, the process is not: like any worker, it has streamed before.
    """

    def minting(slot: Slot) -> None:
        time.sleep(latency)  # the control plane's round trip

    with Member(url, during=minting) as member:
        member.get(EARLIER)
        before = member.stats.snapshot()
        barrier.wait(60)
        credentials = member.get(SLOT)
        returned_at = time.monotonic()
        barrier.wait(60)  # reporting takes its time
        counts = member.stats.snapshot()
        initializes = counts.initializes - before.initializes
        waits = counts.lock_waits - before.lock_waits
        results.put((credentials.mint_id, returned_at, initializes, waits))


def listen_barely(url: str, place: int, board: Board) -> None:
    """Subscribe to what the slot's waiters subscribe to, with redis-py alone."""
    with redis.Redis.from_url(url, protocol=2) as client, client.pubsub() as pubsub:
        pubsub.ssubscribe(LAYOUT.wake(SLOT))
        pubsub.get_message(timeout=60)
        pubsub.get_message(timeout=60)
        board.woken_at[place] = time.monotonic()
        board.dismissed.acquire()


def _wait_for_wake(url: str, place: int, board: Board) -> None:
    """Get credentials of a slot that somebody else is initializing.

    The slot is cold, the process is not: like any worker, it has streamed before.
    """
    with Member(url) as member:
        member.get(EARLIER)
        before = member.stats.snapshot().lock_waits
        credentials = member.get(SLOT)
        board.woken_at[place] = time.monotonic()
        board.mints[place] = int(credentials.mint_id.removeprefix("mint-"))
        board.waits[place] = member.stats.snapshot().lock_waits - before
        board.dismissed.acquire()


def get_inside(url: str, lease: float, inside: Any, go_on: Any, results: Any) -> None:
    """Get credentials; say when ``initialize`` is reached, and stay in it until told."""
    # It warns that it took too long, which is what the tests are about.
    logging.getLogger("celery_streams").setLevel(logging.ERROR)

    def wait(slot: Slot) -> None:
        inside.set()
        go_on.wait(60)

    with Member(url, lock_lease=lease, during=wait) as member:
        credentials = member.get(SLOT)
        results.put((credentials.mint_id, member.stats.snapshot().initializes))


def get_until_refreshed(url: str, life: float, ahead: float, barrier: Any, results: Any) -> None:
    """Call ``get`` in a loop until its answer changes; report the slowest call."""
    clock = Clock()
    clock.ahead = ahead

    def minting(slot: Slot) -> None:
        time.sleep(1.0)  # long enough to tell a call that waits for it from one that does not

    with Member(url, clock=clock, life=life, during=minting) as member:
        member.link.client.ping()
        barrier.wait(60)
        first = member.get(SLOT)
        slowest, give_up = 0.0, time.monotonic() + 30
        current = first
        while current == first and time.monotonic() < give_up:
            started = time.monotonic()
            current = member.get(SLOT)
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.001)  # a loop that writes, not one that spins
        results.put((first.mint_id, current.mint_id, slowest))
