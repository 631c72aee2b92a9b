"""Credentials are renewed before they expire, by one process, while everybody writes on."""

from __future__ import annotations

import logging
import threading

import pytest

from celery_streams.contracts import Credentials
from celery_streams.credentials.refresh import Refresher, due_at, retry_at
from celery_streams.credentials.sealing import Minted
from celery_streams.errors import RunFinished
from celery_streams.slots import Slot
from tests.credentials.conftest import Join
from tests.credentials.fleet import SLOT, Clock, Member, get_until_refreshed, processes
from tests.servers import ServerProcess
from tests.servers.children import eventually

IN_THE_WINDOW = 950


def refreshed(member: Member, old: Credentials) -> None:
    eventually(lambda: member.get(SLOT) != old, "the credentials are refreshed")


def test_a_refresh_is_due_when_the_configured_part_of_the_life_is_left() -> None:
    """The life counts from the mint, whoever looks."""
    minted = Minted(Credentials(SLOT, "m", "t", expires_at=1100.0), minted_at=100.0)
    assert due_at(minted, 0.1) == 1000.0
    assert due_at(minted, 0) == 1100.0


def test_a_refresh_of_what_was_born_expired_is_due_at_once() -> None:
    """An authority that mints expired credentials does not get its life turned around."""
    minted = Minted(Credentials(SLOT, "m", "t", expires_at=100.0), minted_at=200.0)
    assert due_at(minted, 0.1) == 100.0


def test_tries_are_spread_over_what_remains() -> None:
    """Soon if little remains, never after the expiry, and sooner if others are at it."""
    assert retry_at(0.0, 10_000.0, failed=True) == 5.0
    assert retry_at(0.0, 10_000.0, failed=False) == 1.0
    assert retry_at(0.0, 2.0, failed=True) == 0.5
    assert retry_at(0.0, 0.01, failed=True) == 0.01


def test_get_answers_at_once_while_a_refresh_is_running(join: Join) -> None:
    """The old credentials are valid, so nobody waits for the new ones."""
    clock, go_on = Clock(), threading.Event()
    member = join(clock=clock, life=1000)
    old = member.get(SLOT)
    member.authority.during = lambda slot: go_on.wait(30)
    clock.ahead = IN_THE_WINDOW
    assert all(member.get(SLOT) is old for _ in range(50))
    eventually(lambda: member.authority.calls() == 2, "the refresh initializes")
    assert all(member.get(SLOT) is old for _ in range(50))
    go_on.set()
    refreshed(member, old)
    assert member.authority.calls() == 2
    counts = member.stats.snapshot()
    assert (counts.initializes, counts.refreshes) == (2, 1)


def test_no_refresh_before_the_window(join: Join) -> None:
    """Most of a life passes without a call to the authority."""
    clock = Clock()
    member = join(clock=clock, life=1000)
    old = member.get(SLOT)
    clock.ahead = 890
    assert member.get(SLOT) is old
    assert not member.cache._refresher._running
    assert member.authority.calls() == 1


def test_a_refresh_adopts_what_another_process_has_refreshed(join: Join) -> None:
    """Two processes in the window: one initialize between them."""
    clock = Clock()
    first, second = join(clock=clock, life=1000), join(clock=clock, life=1000)
    old = first.get(SLOT)
    assert second.get(SLOT) == old
    clock.ahead = IN_THE_WINDOW
    refreshed(first, old)
    refreshed(second, old)
    assert first.get(SLOT) == second.get(SLOT)
    assert first.authority.calls() == 2
    assert second.stats.snapshot().refreshes == 0


def test_a_fleet_in_the_window_refreshes_once_and_nobody_waits(server: ServerProcess) -> None:
    """Eight processes write in a loop while an initialize of one second is under way: each ends
    up with the same new credentials, and none of their calls took as long as that."""
    life, count = 400.0, 8
    with Member(server.url, life=life) as first:
        first.get(SLOT)
        context = processes()
        barrier, results = context.Barrier(count), context.Queue()
        children = [
            context.Process(
                target=get_until_refreshed, args=(server.url, life, life - 30, barrier, results)
            )
            for _ in range(count)
        ]
        for child in children:
            child.start()
        outcomes = [results.get(timeout=60) for _ in children]
        for child in children:
            child.join(30)
        assert {(before, after) for before, after, _ in outcomes} == {("mint-1", "mint-2")}
        assert max(slowest for *_, slowest in outcomes) < 1.0
        assert first.authority.calls() == 2


def test_a_failed_refresh_is_logged_once_and_tried_again(
    join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers see nothing of it; when the authority is back, the next try succeeds."""
    clock = Clock()
    member = join(clock=clock, life=1000)
    old = member.get(SLOT)

    def fail(slot: Slot) -> None:
        raise RuntimeError("the control plane is down")

    member.authority.during = fail
    clock.ahead = IN_THE_WINDOW
    with caplog.at_level(logging.WARNING, "celery_streams.credentials"):
        for tries in (2, 3, 4):
            assert member.get(SLOT) is old
            eventually(lambda tries=tries: member.authority.calls() == tries, "it tries")
            eventually(lambda: not member.cache._refresher._running, "and gives up")
            clock.ahead += 6
    assert len(caplog.records) == 1
    assert "the control plane is down" in caplog.text
    member.authority.during = lambda slot: None
    refreshed(member, old)
    assert not member.locked()


def test_a_finished_run_is_not_refreshed_again_and_again(join: Join) -> None:
    """Its credentials are used until they expire; then the caller is told."""
    clock = Clock()
    member = join(clock=clock, life=1000)
    old = member.get(SLOT)

    def finished(slot: Slot) -> None:
        raise RunFinished("over")

    member.authority.during = finished
    clock.ahead = IN_THE_WINDOW
    member.get(SLOT)
    eventually(lambda: member.authority.calls() == 2, "it tries")
    eventually(lambda: not member.cache._refresher._running, "and gives up")
    clock.ahead += 40
    assert member.get(SLOT) is old
    assert not member.cache._refresher._running
    clock.ahead += 20
    with pytest.raises(RunFinished):
        member.get(SLOT)


def test_a_refresh_does_not_bring_back_what_was_evicted_meanwhile(join: Join) -> None:
    """The process level stays empty; the next call finds the refreshed ones in Redis."""
    clock, inside, go_on = Clock(), threading.Event(), threading.Event()
    member = join(clock=clock, life=1000)
    old = member.get(SLOT)

    def wait(slot: Slot) -> None:
        inside.set()
        assert go_on.wait(30)

    member.authority.during = wait
    clock.ahead = IN_THE_WINDOW
    member.get(SLOT)
    assert inside.wait(30)
    assert member.cache.evict(old)
    go_on.set()
    eventually(lambda: not member.cache._refresher._running, "the refresh ends")
    assert member.cache.peek(SLOT) is None
    assert member.get(SLOT).mint_id == "mint-2"
    assert member.authority.calls() == 2


def test_the_refresher_uses_one_named_daemon_thread_and_none_while_idle() -> None:
    """However many slots are due; an idle process has no thread that a fork would lose."""
    refresher, done, seen = Refresher(), threading.Event(), []
    for number in range(100):
        refresher.submit(lambda: seen.append(threading.current_thread()))
        if number == 99:
            refresher.submit(done.set)
    assert done.wait(30)
    eventually(lambda: not refresher._running, "the thread ends")
    assert all(thread.daemon and "credentials-refresh" in thread.name for thread in seen)


def test_two_slots_due_at_once_are_both_refreshed(join: Join) -> None:
    """Jobs queue up behind the one that runs."""
    clock = Clock()
    member = join(clock=clock, life=1000)
    slots = [Slot.run("run-1", key) for key in "abc"]
    old = [member.get(slot) for slot in slots]
    clock.ahead = IN_THE_WINDOW
    eventually(
        lambda: all(member.get(slot) != before for slot, before in zip(slots, old, strict=True)),
        "all are refreshed",
    )
    assert [member.authority.calls(slot) for slot in slots] == [2, 2, 2]
