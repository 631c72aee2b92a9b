"""One process's cache, or two side by side: levels, flights, evicting, failures."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from celery_streams.contracts import JSON, Credentials
from celery_streams.errors import ConfigurationError, RunFinished, StoreUnavailable
from celery_streams.slots import Slot
from tests.credentials.conftest import Join
from tests.credentials.fleet import LAYOUT, SLOT, Clock, in_threads
from tests.servers import ServerProcess
from tests.servers.children import eventually


class Broken(RuntimeError):
    """What a control plane raises that is down."""


def failing(error: Exception) -> Any:
    def fail(slot: Slot) -> None:
        raise error

    return fail


def test_repeated_calls_initialize_once(join: Join) -> None:
    """The second call and all later ones are answered from the process's memory."""
    member = join()
    first = member.get(SLOT)
    assert all(member.get(SLOT) is first for _ in range(100))
    assert member.authority.calls() == 1
    counts = member.stats.snapshot()
    assert (counts.initializes, counts.cache_hits_l1, counts.cache_hits_l2) == (1, 100, 0)


def test_an_equal_slot_is_the_same_slot(join: Join) -> None:
    """Callers need not keep the slot object."""
    member = join()
    assert member.get(Slot.run("run-1")) is member.get(Slot.run("run-1"))


def test_each_key_run_and_session_is_initialized_separately(join: Join) -> None:
    """Six slots that differ in one part each: six mints, none of them for another slot."""
    member = join()
    slots = [
        Slot.run("a"),
        Slot.run("a", "progress"),
        Slot.run("b"),
        Slot.session("a", "out"),
        Slot.session("a", "in"),
        Slot.session("b", "out"),
    ]
    assert [member.get(slot).slot for slot in slots] == slots
    assert [member.authority.calls(slot) for slot in slots] == [1] * 6


def test_a_second_process_finds_the_first_ones_credentials(join: Join) -> None:
    """One round trip, no lock, no initialize."""
    first, second = join(), join()
    assert first.get(SLOT) == second.get(SLOT)
    assert second.authority.calls() == 1
    counts = second.stats.snapshot()
    assert (counts.initializes, counts.cache_hits_l2, counts.lock_waits) == (0, 1, 0)


def test_the_content_type_reaches_the_authority(join: Join) -> None:
    """It is the authority that records what a stream holds."""
    member, seen = join(), []
    initialize = member.authority.initialize

    def spy(slot: Slot, *, content_type: str = JSON) -> Credentials:
        seen.append(content_type)
        return initialize(slot, content_type=content_type)

    member.authority.initialize = spy  # type: ignore[method-assign]
    member.get(SLOT, content_type="text/plain")
    assert seen == ["text/plain"]


def test_concurrent_threads_share_one_flight(join: Join) -> None:
    """Sixteen threads on a cold slot get the very same object, and one goes to Redis."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(slot: Slot) -> None:
        inside.set()
        assert go_on.wait(30)

    member = join(during=wait)
    let_go = threading.Thread(target=lambda: inside.wait(30) and go_on.set())
    let_go.start()
    results = in_threads(16, lambda: member.get(SLOT))
    let_go.join()
    assert all(result is results[0] for result in results)
    assert member.authority.calls() == 1
    counts = member.stats.snapshot()
    assert (counts.cache_hits_l2, counts.lock_waits) == (0, 0)


def test_every_thread_of_a_failed_flight_gets_the_error(join: Join) -> None:
    """Nobody is left waiting, and the next caller starts anew."""
    inside, go_on = threading.Event(), threading.Event()
    followers = 7

    def fail(slot: Slot) -> None:
        inside.set()
        assert go_on.wait(30)
        raise Broken("down")

    member = join(during=fail)
    leader_outcome: list[Any] = []

    def lead() -> None:
        leader_outcome.extend(in_threads(1, lambda: member.get(SLOT)))

    leader = threading.Thread(target=lead)
    leader.start()
    assert inside.wait(30)
    (flight,) = member.cache._flights.values()

    def joined() -> bool:
        return len(flight.landed._condition._waiters) == followers  # type: ignore[attr-defined]

    release = threading.Thread(
        target=lambda: (eventually(joined, "all have joined the flight"), go_on.set())
    )
    release.start()
    outcomes = in_threads(followers, lambda: member.get(SLOT))
    release.join()
    leader.join()
    assert all(isinstance(each, Broken) for each in outcomes + leader_outcome)
    assert member.authority.calls() == 1
    member.authority.during = lambda slot: None
    assert member.get(SLOT).mint_id == "mint-2"


def test_an_interrupted_leader_does_not_interrupt_its_followers(join: Join) -> None:
    """The exit of one thread is not an error of another: that one tries by itself."""
    inside, go_on = threading.Event(), threading.Event()

    def interrupt(slot: Slot) -> None:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(30)
            raise SystemExit

    member = join(during=interrupt)
    outcome: list[Any] = []
    leader = threading.Thread(
        target=lambda: outcome.extend(in_threads(1, lambda: member.get(SLOT)))
    )
    leader.start()
    assert inside.wait(30)
    release = threading.Thread(target=go_on.set)
    release.start()
    assert member.get(SLOT).mint_id == "mint-2"
    release.join()
    leader.join()
    assert isinstance(outcome[0], SystemExit)


@pytest.mark.parametrize(
    "error",
    [Broken("down"), StoreUnavailable("down"), ConfigurationError("wrong"), RunFinished("over")],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_initialize_leaves_nothing_behind(join: Join, error: Exception) -> None:
    """The caller gets the error, once tried; no entry, no lock; the next caller succeeds."""
    member = join(during=failing(error))
    with pytest.raises(type(error)):
        member.get(SLOT)
    assert member.authority.calls() == 1
    assert member.cache.peek(SLOT) is None
    assert member.sealed() is None
    assert not member.locked()
    member.authority.during = lambda slot: None
    assert member.get(SLOT).mint_id == "mint-2"


def test_expired_credentials_are_a_miss_at_both_levels(join: Join) -> None:
    """Neither the process that has them nor one that finds them in Redis uses them."""
    clock = Clock()
    first, second = join(clock=clock, life=100), join(clock=clock, life=100)
    first.get(SLOT)
    clock.ahead = 101
    assert first.cache.peek(SLOT) is None
    assert second.get(SLOT).mint_id == "mint-2"
    assert first.get(SLOT).mint_id == "mint-2"
    assert first.authority.calls() == 2


def test_redis_forgets_credentials_when_they_expire(join: Join) -> None:
    """The entry's time to live is the credentials'."""
    member = join(life=100)
    member.get(SLOT)
    assert 90_000 < member.link.client.pttl(LAYOUT.cached_credentials(SLOT)) <= 100_000


def test_evicted_credentials_are_gone_at_both_levels(join: Join) -> None:
    """The next call initializes; evicting them again finds nothing."""
    member = join()
    rejected = member.get(SLOT)
    assert member.cache.evict(rejected)
    assert member.cache.peek(SLOT) is None
    assert member.sealed() is None
    assert not member.cache.evict(rejected)
    assert member.get(SLOT).mint_id == "mint-2"
    assert member.stats.snapshot().evictions == 1


def test_evicting_old_credentials_leaves_newer_ones_alone(join: Join) -> None:
    """Two processes are rejected; the second to evict must not undo what the first obtained."""
    first, second = join(), join()
    old_in_first, old_in_second = first.get(SLOT), second.get(SLOT)
    first.cache.evict(old_in_first)
    new = first.get(SLOT)
    sealed = first.sealed()
    assert second.cache.evict(old_in_second), "its own process level still had them"
    assert not first.cache.evict(old_in_first)
    assert first.cache.peek(SLOT) is new
    assert first.sealed() == sealed
    assert second.get(SLOT) == new
    assert first.authority.calls() == 2


def test_evicting_works_without_the_process_level(join: Join) -> None:
    """Credentials whose entry was forgotten here are still removed from Redis."""
    member = join()
    rejected = member.get(SLOT)
    member.cache.reset()
    assert member.cache.evict(rejected)
    assert member.get(SLOT).mint_id == "mint-2"


def test_ten_writers_rejected_at_once_initialize_once(join: Join) -> None:
    """Each evicts what it was rejected with and asks again: one of them initializes."""
    member = join()
    rejected = member.get(SLOT)

    def write_again() -> Credentials:
        member.cache.evict(rejected)
        return member.get(SLOT)

    assert {each.mint_id for each in in_threads(10, write_again)} == {"mint-2"}
    assert member.authority.calls() == 2


def test_reset_forgets_the_process_level_only(join: Join) -> None:
    """The next call finds the same credentials in Redis."""
    member = join()
    before = member.get(SLOT)
    member.cache.reset()
    assert member.cache.peek(SLOT) is None
    assert member.get(SLOT) == before
    assert member.authority.calls() == 1


def test_a_flight_from_before_a_reset_brings_nothing_back(join: Join) -> None:
    """Its callers get their credentials; the process level stays empty."""

    def reset(slot: Slot) -> None:
        member.cache.reset()

    member = join(during=reset)
    assert member.get(SLOT).mint_id == "mint-1"
    assert member.cache.peek(SLOT) is None


def test_peek_answers_from_memory_alone(join: Join, server: ServerProcess) -> None:
    """Neither level of the lookup is touched."""
    member = join()
    assert member.cache.peek(SLOT) is None
    credentials = member.get(SLOT)
    commands = server.client().info("stats")["total_commands_processed"]
    assert member.cache.peek(SLOT) is credentials
    assert member.get(SLOT) is credentials
    assert server.client().info("stats")["total_commands_processed"] == commands + 1


def test_the_least_recently_used_slot_is_forgotten(join: Join) -> None:
    """A process that serves many runs remembers the last ``cache_size`` of them."""
    member = join(cache_size=2)
    a, b, c = (Slot.run(name) for name in "abc")
    for slot in (a, b, a, c):
        member.get(slot)
    assert [member.cache.peek(slot) is not None for slot in (a, b, c)] == [True, False, True]


def test_the_process_level_never_exceeds_its_bound(join: Join) -> None:
    """Also when the surplus goes in steps; those in use stay."""
    member = join(cache_size=40)
    favourite = Slot.run("favourite")
    for number in range(200):
        member.get(Slot.run(f"run-{number}"))
        member.get(favourite)
        assert len(member.cache._entries) <= 40
    assert member.authority.calls(favourite) == 1
    assert member.stats.snapshot().cache_hits_l2 == 0


def test_a_forked_child_does_not_wait_for_its_parents_threads(join: Join) -> None:
    """A fork while another thread initializes: the child gets the outcome through Redis."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(slot: Slot) -> None:
        inside.set()
        assert go_on.wait(30)

    member = join(during=wait)
    leader = threading.Thread(target=lambda: member.get(SLOT))
    leader.start()
    assert inside.wait(30)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, b"?")
            os.write(write, member.get(SLOT).mint_id.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        assert answers.read(1) == b"?"
        go_on.set()
        assert answers.read() == b"mint-1"
    os.waitpid(pid, 0)
    leader.join()
    assert member.authority.calls() == 1


GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, gevent, time
from tests.credentials.fleet import SLOT, Clock, Member
clock = Clock()
with Member(sys.argv[1], clock=clock, life=1000, during=lambda slot: time.sleep(0.05)) as member:
    jobs = [gevent.spawn(member.get, SLOT) for _ in range(50)]
    gevent.joinall(jobs, raise_error=True)
    assert len({id(job.value) for job in jobs}) == 1
    first = jobs[0].value
    clock.ahead = 950
    assert member.get(SLOT) is first
    with gevent.Timeout(20):
        while member.get(SLOT) is first:
            gevent.sleep(0.01)
    assert member.authority.calls() == 2, member.authority.calls()
"""


def test_greenlets_share_flights_and_refreshes(server: ServerProcess) -> None:
    """Under gevent's monkey patching nothing blocks the hub: fifty greenlets, one call each
    for the mint and for the refresh."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GEVENT, server.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
