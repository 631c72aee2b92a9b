"""Two processes' caches against a model that fits on a screen."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from celery_streams.contracts import Credentials
from celery_streams.slots import Slot
from tests.credentials.fleet import Clock, Member
from tests.servers import ServerProcess

LIFE = 1000.0
NAMES = ("a", "b")
_example = itertools.count()


class CacheModel(RuleBasedStateMachine):
    """The fleet has at most one mint in Redis; each process remembers at most one object.

    Every mint the model expects is necessary (nobody had usable credentials to share), so an
    equal count means that the cache initializes as rarely as can be.
    """

    url: str
    held = Bundle("held")

    @initialize()
    def join(self) -> None:
        self.slot = Slot.run(f"run-{next(_example)}")
        self.clock = Clock()
        self.members = {
            name: Member(self.url, clock=self.clock, life=LIFE, refresh_ahead=0) for name in NAMES
        }
        self.in_process: dict[str, Credentials | None] = dict.fromkeys(NAMES)
        self.in_redis: Credentials | None = None
        self.mints = 0

    def teardown(self) -> None:
        for member in self.members.values():
            member.close()

    def usable(self, credentials: Credentials | None) -> bool:
        return credentials is not None and self.clock() < credentials.expires_at

    @rule(target=held, name=st.sampled_from(NAMES))
    def get(self, name: str) -> Credentials:
        got = self.members[name].cache.get(self.slot)
        remembered = self.in_process[name]
        if self.usable(remembered):
            assert got is remembered
        elif self.usable(self.in_redis):
            assert got == self.in_redis
        else:
            self.mints += 1
            assert got.mint_id == f"mint-{self.mints}"
            self.in_redis = got
        self.in_process[name] = got
        return got

    @rule(name=st.sampled_from(NAMES), rejected=held)
    def evict(self, name: str, rejected: Credentials) -> None:
        """Rejected (revoked, say) long ago or just now, here or in the other process."""
        installed = False
        if self.in_redis == rejected:
            self.in_redis, installed = None, True
        if self.in_process[name] is rejected:
            self.in_process[name], installed = None, True
        assert self.members[name].cache.evict(rejected) == installed

    @rule(name=st.sampled_from(NAMES))
    def reset(self, name: str) -> None:
        self.members[name].cache.reset()
        self.in_process[name] = None

    @rule(target=held)
    def expire(self) -> object:
        self.clock.ahead += LIFE + 1
        return multiple()

    @rule(name=st.sampled_from(NAMES))
    def compare(self, name: str) -> None:
        member, remembered = self.members[name], self.in_process[name]
        assert member.cache.peek(self.slot) is (remembered if self.usable(remembered) else None)
        assert (member.sealed(self.slot) is None) == (self.in_redis is None)
        assert member.authority.calls(self.slot) == self.mints
        assert not member.locked(self.slot)


def test_the_cache_does_what_the_model_does(server: ServerProcess) -> None:
    """Gets, evictions of anything ever held, resets and expiry, in any order: an eviction never
    removes newer credentials, and nothing is initialized that somebody could have shared."""

    class OnThisServer(CacheModel):
        url = server.url

    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
