"""Read and change run records: enter an attempt, show life, end the run and its streams."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from celery_streams.contracts import Attempt
from celery_streams.errors import CredentialsRejected, RunFinished, StreamError, StreamFenced
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.redis.scripts import Script, load_script
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

logger = logging.getLogger("celery_streams.runs")

#: The state recorded for a run whose worker vanished.
LOST = "LOST"

#: The run is over: by this call, or before.
_OVER = ("OK", "ALREADY")
#: Runs whose streams one process remembers to have ended.
_MOST_ENDED = 10_000


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the store knows of a run. ``state`` is ``None`` while the run has not ended."""

    run_id: str
    state: str | None
    keys: tuple[str, ...]
    epoch: int
    leased: bool


def _script(name: str) -> Script:
    return load_script("celery_streams.runs", name)


#: Ends one stream as a state; does nothing with one that does not exist, or has ended.
End = Callable[[Slot, str], object]


class RunRegistry:
    """The runs of one store. Every method is one round trip, but for those that end a run whose
    chunks are elsewhere.

    ``end`` ends a stream of a store that does not know of runs: it is asked for each stream of
    a run whose end has been recorded. A process that dies between the two leaves a run that has
    ended with streams that have not: whoever asks next what became of the run ends them.
    """

    def __init__(
        self, link: RedisLink, layout: Layout, settings: StreamsSettings, end: End | None = None
    ) -> None:
        self._link = link
        self._end = end
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._layout = layout
        self._retention = max(1, round(settings.retention * 1000))
        self._lease = max(1, round(settings.orphan_timeout * 1000))

    def begin(self, attempt: Attempt) -> int:
        """Take the run's fence for a later attempt; returns the attempt's epoch.

        Raises:
            RunFinished: the run has ended.
            StreamFenced: a later attempt has taken the fence.
        """
        call: Call[int] = Call(
            _script("begin"),
            self._record(attempt.run_id),
            (
                attempt.attempt_id,
                attempt.generation,
                int(attempt.redelivered),
                self._retention,
                self._lease + attempt.grace_ms,
                self._layout.base(_any_slot(attempt.run_id)),
            ),
            partial(_begun, attempt.run_id),
        )
        return self._link.call(call)

    def renew(self, attempts: Sequence[Attempt]) -> list[bool | Exception]:
        """Show that these attempts live; ``False`` for one that a later attempt replaced."""
        return self._link.call_many([self._renewal(attempt) for attempt in attempts])

    def suspend(self, attempt: Attempt) -> None:
        """The attempt ends and the run goes on later (retry, replacement)."""
        self._link.call(
            Call(
                _script("suspend"),
                self._record(attempt.run_id),
                (attempt.attempt_id, self._layout.base(_any_slot(attempt.run_id))),
            )
        )

    def finish(self, attempt: Attempt, state: str, *, always: bool = False) -> str:
        """End the run as ``state`` and close its streams; the first end stays.

        An ``attempt`` without an ``attempt_id`` speaks for a worker that cannot (killed, time
        limit); one of ``@`` and a process for that process, so not for an attempt of the same
        generation that another one executes. ``always`` leaves a record even of a run that never
        had a stream. Returns what came of it: ``OK``, ``ALREADY``, ``NONE`` or ``SUPERSEDED``.
        """
        call = self._ending(attempt, state, always=always, only_lost=False)
        verdict, recorded = self._link.call(call)
        if verdict in _OVER:
            self._end_streams(attempt.run_id, recorded)
        return verdict

    def finish_if_lost(self, run_id: str, state: str = LOST) -> str | None:
        """End the run as ``state`` if its lease has run out; how it ended, if it is over now."""
        call = self._ending(Attempt(run_id, ""), state, always=False, only_lost=True)
        verdict, recorded = self._link.call(call)
        if verdict not in _OVER:
            return None
        self._end_streams(run_id, recorded)
        return recorded

    def end_streams(self, record: RunRecord) -> None:
        """Make sure that the streams of a run that has ended have, too; once in a process.

        Raises:
            StoreUnavailable: not now.
        """
        if self._end is None or record.state is None or record.run_id in self._ended:
            return
        for key in record.keys:
            try:
                self._end(Slot.run(record.run_id, key), record.state)
            except CredentialsRejected as error:
                # A reader's token does not allow it; those who read here learn of the end from
                # the run's record.
                logger.info("cannot end stream %r of run %s: %s", key, record.run_id, error)
        self._ended[record.run_id] = None
        while len(self._ended) > _MOST_ENDED:
            self._ended.pop(next(iter(self._ended)), None)

    def first_time(self, run_id: str, what: str = "warned") -> bool:
        """Whether nobody has asked this of the run before: for things said once per run."""
        run = self._layout.owner(_any_slot(run_id))
        calls: list[Call[Any]] = [
            Call("HSETNX", (run,), (what, 1)),
            Call("PEXPIRE", (run,), (self._retention,)),
        ]
        return bool(_all_of(self._link.call_many(calls))[0])

    def describe(self, run_id: str) -> RunRecord:
        """What is recorded of the run; all empty for one that never opened a stream."""
        slot = _any_slot(run_id)
        calls: list[Call[Any]] = [
            Call("SMEMBERS", (self._layout.keys(slot),)),
            Call("HMGET", (self._layout.owner(slot),), ("state", "epoch", "lease")),
        ]
        keys, (state, epoch, lease) = _all_of(self._link.call_many(calls))
        return RunRecord(
            run_id,
            None if state is None else state.decode(),
            tuple(sorted(key.decode() for key in keys)),
            int(epoch or 0),
            lease is not None,
        )

    def _end_streams(self, run_id: str, state: str) -> None:
        if self._end is not None and run_id not in self._ended:
            self.end_streams(replace(self.describe(run_id), state=state))

    def _renewal(self, attempt: Attempt) -> Call[bool]:
        return Call(
            _script("renew"),
            self._record(attempt.run_id),
            (
                attempt.attempt_id,
                self._lease + attempt.grace_ms,
                self._retention,
                self._layout.base(_any_slot(attempt.run_id)),
            ),
            bool,
        )

    def _ending(
        self, attempt: Attempt, state: str, *, always: bool, only_lost: bool
    ) -> Call[tuple[str, str]]:
        return Call(
            _script("finish"),
            self._record(attempt.run_id),
            (
                state,
                self._layout.base(_any_slot(attempt.run_id)),
                self._retention,
                attempt.attempt_id,
                attempt.generation,
                int(attempt.redelivered),
                int(always),
                int(only_lost),
                self._lease,
            ),
            _verdict,
        )

    def _record(self, run_id: str) -> tuple[str, str]:
        """The keys of the run's record, and of the set of its streams."""
        slot = _any_slot(run_id)
        return self._layout.owner(slot), self._layout.keys(slot)


def _all_of(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _any_slot(run_id: str) -> Slot:
    return Slot.run(run_id)


def _verdict(reply: list[Any]) -> tuple[str, str]:
    return reply[0].decode(), reply[1].decode()


def _begun(run_id: str, reply: list[Any]) -> int:
    match reply:
        case [b"OK", int(epoch)]:
            return epoch
        case [b"FINISHED", state]:
            raise RunFinished(
                f"run {run_id} has finished ({state.decode()}); its streams are closed",
                state=state.decode(),
            )
        case [b"FENCED", epoch]:
            raise StreamFenced(
                f"a later attempt (number {epoch.decode()}) of run {run_id} is running; "
                "this attempt must stop"
            )
    raise StreamError(f"unexpected reply on entering run {run_id}: {reply!r}")
