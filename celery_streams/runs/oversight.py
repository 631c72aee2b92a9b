"""What somebody who is not the run's worker may conclude about it: :class:`RunOversight`."""

from __future__ import annotations

from celery import states

from celery_streams.contracts import Attempt
from celery_streams.errors import RunFinished, StreamNotFound
from celery_streams.runs.registry import LOST, RunRegistry
from celery_streams.runs.results import ResultStates

#: A generation no attempt is newer than: the result backend's word is final.
_ANY = 1 << 52


class RunOversight:
    """Judges runs by their records and, if there is one, by the app's result backend."""

    def __init__(self, registry: RunRegistry, results: ResultStates | None) -> None:
        self._registry = registry
        self._results = results

    def require(self, run_id: str) -> None:
        """Raise :class:`StreamNotFound` or :class:`RunFinished` unless the run can be written."""
        record = self._registry.describe(run_id)
        if record.state is not None:
            raise RunFinished(
                f"run {run_id} has finished ({record.state}); its streams are closed",
                state=record.state,
            )
        if record.keys or record.epoch or record.leased:
            return
        if self._backend_state(run_id) in (None, states.PENDING):
            raise StreamNotFound(
                f"nothing is known of a run {run_id!r}: it has opened no stream, and the result "
                "backend has no state for it. If it exists and has not written yet, use "
                "streams.write_to(run_id, key, create=True)"
            )

    def end_if_over(self, run_id: str) -> str | None:
        """Close the streams of a run that is over without its worker having said so.

        Whoever waits for a run looks now and then: its worker's lease may have run out, or
        the result backend may know that it ended. Returns how the run ended; ``None`` while
        it has not.
        """
        record = self._registry.describe(run_id)
        if record.state is not None:
            self._registry.end_streams(record)
            return record.state
        known = self._backend_state(run_id)
        ended = known if known in states.READY_STATES else None
        if record.leased:
            return self._registry.finish_if_lost(run_id, ended or LOST)
        if ended is not None and (record.keys or record.epoch):
            self._registry.finish(Attempt(run_id, "", generation=_ANY), ended)
        return ended

    def _backend_state(self, run_id: str) -> str | None:
        return None if self._results is None else self._results.state(run_id)
