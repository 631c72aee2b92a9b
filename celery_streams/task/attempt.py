"""One attempt while it runs: its streams, its drain, and how it ends."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry

from celery_streams.chat.agent import ChatAgent
from celery_streams.chat.context import Chat, session_id_of
from celery_streams.chat.turn import Turn
from celery_streams.contracts import Head
from celery_streams.errors import (
    ConfigurationError,
    OutsideTask,
    RunFinished,
    StoreUnavailable,
    StreamError,
)
from celery_streams.runtime import Ending
from celery_streams.slots import Slot
from celery_streams.task.guardrail import Guardrail
from celery_streams.task.identity import RunIdentity
from celery_streams.task.repetition import FirstWriters, RepetitionWriters
from celery_streams.task.run_streams import RunStreams
from celery_streams.writing.writers import AppWriters, AttemptWriters, raise_first

if TYPE_CHECKING:
    from celery_streams.app import Streams

logger = logging.getLogger("celery_streams.task")


class RefusedAttempt:
    """A task whose id cannot name a run: it runs as ever, and its streams say why they do not."""

    chat = None

    def __init__(self, task_id: str, error: StreamError) -> None:
        self.run_id = task_id
        self.executing = False
        self.replaced = False
        self._error = error

    @property
    def streams(self) -> RunStreams:
        """Raises what is wrong with the id."""
        raise self._error

    def execute(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the task's body."""
        self.executing = True
        try:
            return run(*args, **kwargs)
        finally:
            self.executing = False

    def leave(self, state: str | None) -> None:
        """Nothing was opened."""

    def drain_before_successor(self) -> None:
        """Nothing was written."""


class RunningAttempt:
    """A task that is executing. Does no I/O until the task uses a stream."""

    def __init__(self, owner: Streams, task: Any, identity: RunIdentity, args: Any) -> None:
        self.identity = identity
        self.run_id = identity.run_id
        self.executing = False
        self.replaced = False
        self._owner = owner
        self._task = task
        self._writers: AttemptWriters | None = None
        self._app_writers: dict[Streams, AppWriters] = {}
        self._opening = threading.Lock()
        self._drain_failed = False
        self._raised: BaseException | None = None
        self._number = 1 if identity.first else 0
        self._begun = False  #: it holds the run's fence and a lease, written or not
        self._left = False  #: it is over: nothing is written any more
        self._repeats = False  #: the run had succeeded before this attempt came
        self.streams = RunStreams(
            identity,
            self._get_writers,
            attempt_number=self._get_number,
            require_run=owner.require_run,
            open_reader=owner.open_reader,
            head=self._head,
            drain_timeout=owner.settings.drain_timeout,
            guardrail=self._guardrail() if isinstance(task, ChatAgent) else None,
        )
        self.turn: Turn | None = None
        self.chat = self._chat(args) if isinstance(task, ChatAgent) else None
        owner.track(self)

    @property
    def session(self) -> str | None:
        """The chat session that this works for."""
        return self.chat.session_id if self.chat is not None else self.identity.session

    def execute(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the task's body and drain before its outcome leaves this function.

        Celery stores the result after this returns, so a client that sees SUCCESS finds every
        chunk. A task that fails keeps its own exception; a drain that fails is then only logged.
        """
        self.executing = True
        try:
            if self.turn is not None:
                result = self.turn.execute(run, args, kwargs)
            else:
                result = run(*args, **kwargs)
        except Exception as error:
            self._raised = error
            if not self._drain_failed:
                self._drain(fail=False)
            raise
        except BaseException as error:
            self._raised = error
            raise
        else:
            self._drain(fail=self._owner.settings.drain_failure == "fail")
            return result
        finally:
            self.executing = False

    def leave(self, state: str | None) -> None:
        """The attempt is over and its outcome stored: close the run's streams, or leave them.

        ``state`` is Celery's; ``None`` when an exception propagates out of Celery's tracer.
        """
        self._seal()
        if not self._drain_failed:
            self._drain(fail=False)
        recorded = self._begun or self._own_slot_opened()
        state = state or self._state_of_exception()
        if state is not None:
            children = bool(getattr(self._task.request, "children", None))
            if self._goes_on(state):
                if recorded:
                    self._suspend()
            elif recorded:
                # Always: what opens the stream may still be on its way to a store that stalled,
                # and must find the run over, or nobody but the lease would end it.
                self._end(state, always=True)
            elif children or not self.identity.first:
                # Others may have written to this run, or an earlier attempt of it.
                with suppress(ConfigurationError):  # no store, so nobody has
                    self._end(state, always=children)
        if self._writers is not None:
            self._owner.runtime.leave(self.identity.attempt)

    def _seal(self) -> None:
        """Refuse what a thread that the task has left behind writes: its run has ended."""
        with self._opening:
            self._left = True
        if self._writers is not None:
            self._writers.seal(self._over())

    def _over(self) -> StreamError:
        return OutsideTask(
            f"the task {self._task.name}[{self.run_id}] is over, so nothing can be written to its "
            "streams any more; wait for the threads of a task before it returns"
        )

    def _end(self, state: str, *, always: bool) -> None:
        self._owner.runtime.end_run(Ending(self.identity.attempt, state, always=always))

    def drain_before_successor(self) -> None:
        """Make durable what was written before a message for the run's next attempt is sent.

        The successor's first append fences this attempt, what it has not sent yet included. So
        if something cannot be made durable the task fails instead (unless ``drain_failure`` says
        otherwise), or the run could succeed without it. A task that goes on because it was told
        of a failing stream knows what it does.
        """
        told = isinstance(sys.exc_info()[1], StreamError)
        self._drain(fail=self._owner.settings.drain_failure == "fail" and not told)

    def app_writers(self, owner: Streams, make: Callable[[], AppWriters]) -> AppWriters:
        """What the task writes through its app's own writers: drained with the attempt."""
        with self._opening:
            if owner not in self._app_writers:
                self._app_writers[owner] = make()
            return self._app_writers[owner]

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's writers."""
        self._opening = threading.Lock()
        self._writers = None
        self._app_writers = {}
        self.streams.forget_writers()
        if self.chat is not None and self.turn is not None:
            self.turn.forget_writers()
            self.chat.stream.forget_writers()

    def _get_writers(self) -> AttemptWriters:
        with self._opening:
            if self._left:
                raise self._over()
            if self._writers is None:
                if not (self.identity.first or self._number):
                    # Unreachable now: the writers will retry, and find out what there is.
                    with suppress(StoreUnavailable):
                        self._begin()
                runtime = self._owner.runtime
                self._writers = self._kind()(
                    self.identity.attempt,
                    runtime.open_channel,
                    runtime.store,
                    runtime.cache,
                    runtime.settings,
                )
                if not self._repeats:
                    runtime.enter(self.identity.attempt)
            return self._writers

    def _kind(self) -> Callable[..., AttemptWriters]:
        if self._repeats:
            return RepetitionWriters
        if self.identity.first:
            return partial(FirstWriters, state=self._recorded_state)
        return AttemptWriters

    def _recorded_state(self) -> str | None:
        return self._owner.runtime.registry.describe(self.run_id).state

    def _head(self, slot: Slot) -> Head:
        return self._owner.runtime.store.head(slot)

    def _get_number(self) -> int:
        if not self._number:
            with self._opening:
                if not self._number:
                    self._begin()
            self._get_writers()
        return self._number

    def _begin(self) -> None:
        """Take the run's fence, atomically, unless the run has succeeded without this attempt.

        No earlier attempt can end the run afterwards, so what this one writes has a place.
        """
        epoch = 0
        registry = self._owner.runtime.registry
        try:
            epoch = registry.begin(self.identity.attempt)
            self._begun = True
        except RunFinished as finished:
            if finished.state != states.SUCCESS:
                raise
            self._tell_of_repetition()
        # An earlier attempt that never wrote has left no epoch, but it has been here.
        self._number = max(epoch, self.identity.retries + 1, 2)

    def _tell_of_repetition(self) -> None:
        self._repeats = True
        try:
            first = self._owner.runtime.registry.first_time(self.run_id, "repeated")
        except StreamError:
            first = True
        if first:
            logger.warning(
                "%s[%s] is executed again, though it has succeeded: its message was delivered "
                "twice. Its streams are complete and stay as they are; what this execution "
                "writes is dropped. (Said once per run.)",
                self._task.name,
                self.run_id,
            )

    def _drain(self, *, fail: bool) -> None:
        try:
            self._drain_all(self._owner.settings.drain_timeout)
        except StreamError as error:
            self._drain_failed = True
            if fail:
                raise
            logger.error(
                "chunks of %s[%s] are not durable: %s",
                self._task.name,
                self.identity.run_id,
                error,
            )

    def _drain_all(self, timeout: float) -> None:
        """Wait for the run's writers and for the app's own, ``timeout`` seconds in all."""
        deadline = time.monotonic() + timeout
        failures: list[StreamError] = []
        for writers in (self._writers, *self._app_writers.values()):
            if writers is not None:
                try:
                    writers.drain(max(0.0, deadline - time.monotonic()))
                except StreamError as error:
                    failures.append(error)
        if isinstance(self._writers, FirstWriters) and self._writers.repeats and not self._repeats:
            self._tell_of_repetition()
        raise_first(failures)

    def _own_slot_opened(self) -> bool:
        if self._writers is None:
            return False
        run_id = self.identity.run_id
        return any(slot.scope == "run" and slot.owner == run_id for slot in self._writers.slots)

    def _goes_on(self, state: str) -> bool:
        """Whether the run has another attempt after this one, or is over."""
        match state:
            case states.RETRY:
                return True
            case states.IGNORED:
                return self.replaced
            case states.REJECTED:
                # A message that was acknowledged early, or is not put back, never comes again.
                back = bool(getattr(self._raised, "requeue", False))
                return back and bool(getattr(self._task, "acks_late", False))
        return False

    def _state_of_exception(self) -> str | None:
        match self._raised:
            case Retry():
                return str(states.RETRY)
            case Reject():
                return str(states.REJECTED)
            case Ignore():
                return str(states.IGNORED)
            case Exception():
                return str(states.FAILURE)
        # The process is being torn down: its parent, or the lease, ends the run.
        return None

    def _suspend(self) -> None:
        try:
            self._owner.runtime.registry.suspend(self.identity.attempt)
        except StreamError as error:
            logger.warning("could not suspend run %s: %s", self.identity.run_id, error)

    def _guardrail(self) -> Guardrail:
        run_id = self.identity.run_id
        return Guardrail(
            run_id, self._task.name, lambda: self._owner.runtime.registry.first_time(run_id)
        )

    def _chat(self, args: tuple[tuple[Any, ...], dict[str, Any]]) -> Chat:
        session_id = session_id_of(self._task.run, self._task.session_argument, *args)
        session_id = Slot.session(session_id).owner
        owner = self._owner
        self.turn = Turn(
            self._task,
            self.run_id,
            self.identity.attempt,
            session_id,
            first=self.identity.first,
            runtime=lambda: owner.runtime,
            app=lambda: owner.app,
        )
        return Chat(session_id, self.turn, owner.open_reader)
