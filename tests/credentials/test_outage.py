"""The cache's server is down, the authority is not: writing goes on, and the log says so once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from celery_streams.errors import StoreUnavailable
from celery_streams.slots import Slot
from tests.credentials.conftest import Join
from tests.credentials.fleet import SLOT, Clock
from tests.servers import ValkeyProcess
from tests.servers.children import eventually

LOGGER = "celery_streams.credentials"


@pytest.fixture
def cache_server() -> Iterator[ValkeyProcess]:
    """A server for the cache alone, that tests may kill."""
    with ValkeyProcess() as server:
        yield server


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_without_redis_each_process_initializes_for_itself(
    join: Join, cache_server: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """One call a slot and process, remembered in the process, and one warning in all."""
    first, second = join(cache_url=cache_server.url), join(cache_url=cache_server.url)
    cache_server.kill()
    slots = [Slot.run("run-1", key) for key in "abc"]
    with caplog.at_level(logging.WARNING, LOGGER):
        got = [first.get(slot) for slot in slots]
    assert [first.get(slot) for slot in slots] == got
    assert [first.authority.calls(slot) for slot in slots] == [1, 1, 1]
    assert len(warnings(caplog)) == 1
    assert "cache is down" in caplog.text
    assert second.get(slots[0]).mint_id == "mint-2"


def test_each_outage_is_reported_and_sharing_resumes_after_it(
    join: Join, cache_server: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Down, back, down again: two warnings; while it was back, two processes shared."""
    first, second = join(cache_url=cache_server.url), join(cache_url=cache_server.url)
    during, between, after = (Slot.run("run-1", key) for key in ("during", "between", "after"))
    with caplog.at_level(logging.WARNING, LOGGER):
        cache_server.kill()
        first.get(during)
        cache_server.start()
        shared = first.get(between)
        assert second.get(between) == shared
        cache_server.kill()
        first.get(after)
    assert len(warnings(caplog)) == 2


def test_the_authoritys_own_failure_is_the_callers(join: Join, cache_server: ValkeyProcess) -> None:
    """Also during an outage, and also if it is the same kind of error."""

    def fail(slot: Slot) -> None:
        raise StoreUnavailable("the control plane is down")

    member = join(cache_url=cache_server.url, during=fail)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="control plane"):
            member.get(SLOT)
        cache_server.kill()
    assert member.cache.peek(SLOT) is None


def test_evicting_during_an_outage_clears_the_process_level(
    join: Join, cache_server: ValkeyProcess
) -> None:
    """The next call mints new ones."""
    member = join(cache_url=cache_server.url)
    rejected = member.get(SLOT)
    cache_server.kill()
    assert member.cache.evict(rejected)
    assert member.get(SLOT).mint_id == "mint-2"


def test_a_server_that_dies_while_its_lock_is_held_costs_nothing(
    join: Join, cache_server: ValkeyProcess
) -> None:
    """What was minted is used, though nobody else can be told."""
    member = join(cache_url=cache_server.url, during=lambda slot: cache_server.kill())
    minted = member.get(SLOT)
    assert member.get(SLOT) is minted
    assert member.authority.calls() == 1


def test_a_server_that_dies_under_a_waiter_does_not_leave_it_waiting(
    join: Join, cache_server: ValkeyProcess
) -> None:
    """The subscription breaks, and the waiter initializes for itself."""
    waiter = join(cache_url=cache_server.url, lock_lease=60)
    waiter.link.client.set("cs/{run/run-1}/lock/default", "somebody", px=60_000)
    channel = "cs/{run/run-1}/wake/default"

    def kill_once_it_listens() -> None:
        command = "PUBSUB SHARDNUMSUB"
        client = cache_server.client()
        eventually(lambda: client.execute_command(command, channel)[0][1] == 1, "it listens")
        cache_server.kill()

    killer = threading.Thread(target=kill_once_it_listens)
    killer.start()
    assert waiter.get(SLOT).mint_id == "mint-1"
    killer.join()


def test_refreshing_during_an_outage_renews_this_process_only(
    join: Join, cache_server: ValkeyProcess
) -> None:
    """A long outage does not end with expired credentials."""
    clock = Clock()
    member = join(cache_url=cache_server.url, clock=clock, life=1000)
    old = member.get(SLOT)
    cache_server.kill()
    clock.ahead = 950
    eventually(lambda: member.get(SLOT) is not old, "the credentials are refreshed")
    assert member.stats.snapshot().refreshes == 1
