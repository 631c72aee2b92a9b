"""The store against a model of it in plain Python: any operations, in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from celery_streams.contracts import Appended, Attempt, Batch
from celery_streams.errors import (
    ChunksLost,
    CredentialsRejected,
    OffsetGone,
    StreamClosed,
    StreamError,
    StreamFenced,
)
from celery_streams.slots import Slot
from tests.conftest import SettingsFor
from tests.servers import ServerProcess
from tests.stores.contract.backend import Backend, Hand, chunks_of

names = itertools.count()
#: For steps after which little can happen to a stream.
_SELDOM = st.sampled_from([False] * 5 + [True])


@dataclass(slots=True)
class Fence:
    """What the contract says of the attempts of one writing run, as sets and comparisons."""

    holder: Attempt | None = None
    held: dict[str, int] = field(default_factory=dict)

    def admits(self, attempt: Attempt) -> bool:
        if self.holder is None or self.holder.attempt_id == attempt.attempt_id:
            return True
        if attempt.attempt_id in self.held or attempt.generation < self.holder.generation:
            return False
        return attempt.generation > self.holder.generation or attempt.redelivered

    def take(self, attempt: Attempt) -> int:
        self.holder = attempt
        return self.held.setdefault(attempt.attempt_id, len(self.held) + 1)


@dataclass(slots=True)
class Written:
    """What the model remembers of one producer's last batch."""

    seq: int
    appended: Appended
    batch: Batch


class StoreModel(RuleBasedStateMachine):
    """One stream, written to by its own run and by a foreign one; compared after every step."""

    backend: Backend
    attempts: Bundle[Attempt] = Bundle("attempts")
    hands: Bundle[Hand] = Bundle("hands")

    @initialize(target=attempts)
    def create(self):
        self.slot = Slot.run(f"model-{next(names)}")
        self.chunks: list[int] = []
        self.ends: list[int] = []
        self.first = 0
        self.closed: str | None = None
        self.valid = {self.backend.open(self.slot).token}
        self.fences: dict[str, Fence] = {}
        self.written: dict[str, Written] = {}
        return multiple(Attempt(self.slot.owner, "a0"), Attempt(f"other-{self.slot.owner}", "b0"))

    @rule(target=attempts, of=attempts, generation=st.integers(0, 2), redelivered=st.booleans())
    def deliver(self, of: Attempt, generation: int, redelivered: bool) -> Attempt:
        return Attempt(of.run_id, f"x{next(names)}", generation, redelivered)

    @rule(target=hands, attempt=attempts)
    def start_writing(self, attempt: Attempt) -> Hand:
        return self.open_writer(attempt)

    def open_writer(self, attempt: Attempt) -> Hand:
        credentials = self.backend.open(self.slot)
        self.valid.add(credentials.token)
        return Hand(self.backend.store, credentials, attempt)

    @rule(target=hands, hand=hands, later=st.integers(-1, 1), redelivered=st.booleans())
    def take_over(self, hand: Hand, later: int, redelivered: bool) -> Hand:
        """Another attempt of a run that writes; it appends at once, if it may."""
        attempt = Attempt(
            hand.attempt.run_id,
            f"x{next(names)}",
            max(0, hand.attempt.generation + later),
            redelivered,
        )
        successor = self.open_writer(attempt)
        self.append(successor, 1)
        return successor

    @rule(hand=hands, count=st.integers(1, 4))
    def append(self, hand: Hand, count: int) -> None:
        chunks = [next(names) for _ in range(count)]
        expected = self._refusal(hand)
        if expected is not None:
            with pytest.raises(expected):
                hand.append(*chunks)
            return
        appended = self.applied(hand, hand.batch(*chunks), chunks)
        assert hand.append(*chunks) == appended

    def applied(self, hand: Hand, batch: Batch, chunks: list[int]) -> Appended:
        """The batch is due: what the store answers, and from now on what it holds."""
        epoch = self._fence(hand.attempt).take(hand.attempt)
        start, end = len(self.chunks), len(self.chunks) + batch.count
        again = Appended(start, end, epoch, duplicate=True)
        self.written[hand.producer.producer_id] = Written(batch.seq, again, batch)
        self.chunks += chunks
        self.ends.append(len(self.chunks))
        if (kept := self.backend.settings.max_chunks) and len(self.chunks) > kept:
            before = [each for each in self.ends if each <= len(self.chunks) - kept]
            self.first = max(before, default=0)
        return Appended(start, end, epoch)

    @rule(hand=hands)
    def send_again(self, hand: Hand) -> None:
        """Whatever has happened since: what was applied is acknowledged as it was."""
        if (written := self.written.get(hand.producer.producer_id)) is not None:
            again = hand.store.append(self.slot, written.batch, hand.producer, hand.credentials)
            assert (again.offset, again.end) == (written.appended.offset, written.appended.end)
            assert again.duplicate
            assert again.epoch == written.appended.epoch

    @rule(hand=hands, skipped=st.integers(1, 3))
    def skip_a_batch(self, hand: Hand, skipped: int) -> None:
        """A batch that does not continue its producer's is never written."""
        batch = Batch(hand.seq + skipped, b"0", 1)
        with pytest.raises(self._refusal(hand) or ChunksLost):
            hand.store.append(self.slot, batch, hand.producer, hand.credentials)

    @rule(hand=hands, really=_SELDOM)
    def close(self, hand: Hand, really: bool) -> None:
        if not really:
            return
        if self.closed is None:
            expected = self._refusal(hand)
            if expected is not None:
                with pytest.raises(expected):
                    hand.close()
                return
            self._fence(hand.attempt).take(hand.attempt)
            self.closed = "CLOSED"
        assert hand.close() == self.backend.store.head(self.slot)

    @rule(really=_SELDOM)
    def revoke(self, really: bool) -> None:
        if not really:
            return
        self.backend.authority.revoke(self.slot)
        self.valid.clear()

    @rule(past=st.integers(0, 40))
    def read(self, past: int) -> None:
        """From any offset, counted back from a little beyond the end."""
        offset = max(0, len(self.chunks) + 2 - past)
        if offset < self.first:
            with pytest.raises(OffsetGone) as gone:
                self.backend.store.read(self.slot, offset)
            assert gone.value.first == self.first
        else:
            page = self.backend.store.read(self.slot, offset)
            assert chunks_of(page.entries, offset=offset) == self.chunks[offset:]

    @invariant()
    def the_head_says_what_the_model_says(self) -> None:
        head = self.backend.store.head(self.slot)
        assert (head.end, head.first, head.closed) == (len(self.chunks), self.first, self.closed)
        own = self.fences.get(self.slot.owner)
        assert head.epoch == (len(own.held) if own else 0)

    def teardown(self) -> None:
        """A follower from the trim point sees the same, if the stream has an end."""
        if getattr(self, "closed", None):
            assert self.backend.follow(self.slot, self.first) == self.chunks[self.first :]

    def _fence(self, attempt: Attempt) -> Fence:
        return self.fences.setdefault(attempt.run_id, Fence())

    def _refusal(self, hand: Hand) -> type[StreamError] | None:
        if self.closed is not None:
            return StreamClosed
        if hand.credentials.token not in self.valid:
            return CredentialsRejected
        return None if self._fence(hand.attempt).admits(hand.attempt) else StreamFenced


@pytest.mark.parametrize("max_chunks", [0, 5])
def test_the_store_does_what_the_model_does(
    server: ServerProcess,
    settings_for: SettingsFor,
    times: Callable[[int, int], int],
    max_chunks: int,
) -> None:
    """Attempts that come in any order, resends, gaps, closes, revocations, reads from anywhere."""
    with Backend(settings_for(server.url, max_chunks=max_chunks)) as backend:
        run_state_machine_as_test(
            type("Model", (StoreModel,), {"backend": backend}),
            settings=settings(
                max_examples=times(60, 1500),
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,
                # Shrinking talks to a server: a failure would be found and then run out of time.
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
