"""A store that knows nothing of runs, whose writers are recorded all the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from celery_streams.contracts import (
    Answer,
    Append,
    Appended,
    Attempt,
    Batch,
    Credentials,
    Head,
    Page,
    PipelinedStore,
    Producer,
    Store,
)
from celery_streams.errors import RunFinished, StreamClosed, StreamError
from celery_streams.runs.registry import RunRegistry
from celery_streams.slots import Slot

#: Attempts that one process remembers to have recorded.
_MOST_REMEMBERED = 10_000


class RecordedStore:
    """Writes to ``store``, and records on its run each attempt before its first chunk there.

    The Redis store does that in the script that appends. For another it costs one round trip
    an attempt, not one an append: from then on the attempt holds the run's fence and a lease,
    so its streams are closed if its host is lost. A run's subtasks, and writers outside tasks,
    are not recorded: the run does not end with them.

    Thread-safe.
    """

    def __init__(self, store: Store, registry: RunRegistry) -> None:
        self._store = store
        self._pipelined = store if isinstance(store, PipelinedStore) else None
        #: See :class:`~celery_streams.contracts.PipelinedStore`.
        self.max_in_flight = self._pipelined.max_in_flight if self._pipelined else 1
        self._registry = registry
        self._recorded: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def append(
        self, slot: Slot, batch: Batch, producer: Producer, credentials: Credentials
    ) -> Appended:
        """See :meth:`celery_streams.contracts.Store.append`."""
        result = self.append_many([Append(slot, batch, producer, credentials)])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def append_many(self, appends: Sequence[Append]) -> list[Appended | Exception]:
        """See :meth:`celery_streams.contracts.Store.append_many`."""
        allowed, answers = self._judged(appends)
        if allowed:
            stored = self._store.append_many([appends[place] for place in allowed])
            answers.update(zip(allowed, stored, strict=True))
        return [answers[place] for place in range(len(appends))]

    def submit(self, appends: Sequence[Append], answer: Answer) -> None:
        """See :meth:`celery_streams.contracts.PipelinedStore.submit`.

        Waits for the round trip of an attempt that is new here, and for the answers of a store
        that is not pipelined.
        """
        if self._pipelined is None:
            answer(list(enumerate(self.append_many(appends))))
            return
        allowed, answers = self._judged(appends)
        if answers:
            answer(list(answers.items()))
        if allowed:
            self._pipelined.submit(
                [appends[place] for place in allowed],
                lambda results: answer([(allowed[at], result) for at, result in results]),
            )

    def read(self, slot: Slot, offset: int, *, limit: int = 1000) -> Page:
        """See :meth:`celery_streams.contracts.Store.read`."""
        return self._store.read(slot, offset, limit=limit)

    def follow(self, slot: Slot, offset: int, *, idle: float) -> Iterator[Page]:
        """See :meth:`celery_streams.contracts.Store.follow`."""
        return self._store.follow(slot, offset, idle=idle)

    def head(self, slot: Slot) -> Head:
        """See :meth:`celery_streams.contracts.Store.head`."""
        return self._store.head(slot)

    def close(self, slot: Slot, credentials: Credentials, attempt: Attempt) -> Head:
        """See :meth:`celery_streams.contracts.Store.close`."""
        return self._store.close(slot, credentials, attempt)

    def delete(self, slot: Slot) -> bool:
        """See :meth:`celery_streams.contracts.Store.delete`."""
        return self._store.delete(slot)

    def _judged(
        self, appends: Sequence[Append]
    ) -> tuple[list[int], dict[int, Appended | Exception]]:
        """The places of appends that may be sent, and what the others are refused with."""
        refused = self._record(appends)
        answers: dict[int, Appended | Exception] = {}
        allowed: list[int] = []
        for place, each in enumerate(appends):
            if _is_own(each) and (error := refused.get(each.producer.attempt.attempt_id)):
                answers[place] = error
            else:
                allowed.append(place)
        return allowed, answers

    def _record(self, appends: Sequence[Append]) -> dict[str, StreamError]:
        """Record the attempts that are new here; those that may not write, and why."""
        new: dict[str, Attempt] = {}
        for each in appends:
            attempt = each.producer.attempt
            if _is_own(each) and attempt.attempt_id not in self._recorded:
                new[attempt.attempt_id] = attempt
        refused: dict[str, StreamError] = {}
        for attempt_id, attempt in new.items():
            try:
                self._registry.begin(attempt)
            except RunFinished as finished:
                refused[attempt_id] = StreamClosed(str(finished))
            except StreamError as error:
                refused[attempt_id] = error
            else:
                with self._lock:
                    self._recorded[attempt_id] = None
                    while len(self._recorded) > _MOST_REMEMBERED:
                        self._recorded.popitem(last=False)
        return refused


def _is_own(append: Append) -> bool:
    """Whether a run's attempt writes to a stream of that run."""
    return append.slot.scope == "run" and append.slot.owner == append.producer.attempt.run_id
