"""The hooks into Celery: make every task of an app run inside a :class:`RunningAttempt`.

Hooked on the app, not on Celery: another app in the process without streams is not touched.

- Each task of the app is instrumented when it is registered, at any time and by any way
  (decorator, ``shared_task``, class): the body is wrapped, so that draining happens after it
  and before Celery stores the result. Nothing later is early enough, and nothing else sees
  both outcomes before they are stored. A class with its own ``__call__`` gets that wrapped
  instead, since Celery's tracer then calls it in place of ``run``.
- ``task_prerun`` enters the attempt (so that ``before_start`` may write), ``task_postrun``
  leaves it: the result is stored by then, and the state known.
- ``task_failure`` and ``task_revoked`` also come from the worker's parent process, on behalf
  of a child that was killed or never started: then nobody else will end the run.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery import Celery, signals, states
from celery.app.task import Context, Task
from celery.app.trace import task_has_custom
from celery.exceptions import Retry

from celery_streams.back_ends import import_early
from celery_streams.chat.abandoned import end_for_worker
from celery_streams.chat.agent import ChatAgent
from celery_streams.chat.context import session_id_of
from celery_streams.contracts import Attempt
from celery_streams.errors import StreamError
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.runtime import Ending
from celery_streams.subscriptions.tasks import WakeTask
from celery_streams.task.attempt import RefusedAttempt, RunningAttempt
from celery_streams.task.broker_loss import CloseOnce
from celery_streams.task.current import run_chat, run_streams, running
from celery_streams.task.deliveries import Deliveries
from celery_streams.task.identity import SESSION_HEADER, identify

if TYPE_CHECKING:
    from celery_streams.app import Streams

logger = logging.getLogger("celery_streams.task")

_MARK = "_celery_streams"
#: Celery's own task that ends a run of ours: the last one of a group that replaces a task.
_ACCUMULATE = "celery.accumulate"


class Lifecycle:
    """The hooks of one :class:`~celery_streams.Streams` on one Celery app."""

    def __init__(self, owner: Streams, app: Celery) -> None:
        self._owner = owner
        self._app = app
        self._deliveries = Deliveries()

    def install(self) -> None:
        """Instrument the app's tasks, now and as they are registered, and listen."""
        app = self._app
        app._task_from_fun = self._instrumenting(app._task_from_fun)
        app.register_task = self._instrumenting(app.register_task)
        self._instrument_all()
        # Tasks declared before this was installed are made at their first use, or when the app
        # is finalized.
        for promise in app._pending:
            promise.__then__(self._instrument_promised, promise)
        app.on_after_finalize.connect(self._instrument_all, weak=False)
        app.steps["consumer"].add(CloseOnce)
        # Named, because Celery 5.6 takes the same method of another object for the same receiver:
        # a second app in the process would have no hooks.
        name = f"celery_streams.{id(self)}"
        for signal, receiver in (
            (signals.before_task_publish, self._on_publish),
            (signals.task_prerun, self._on_prerun),
            (signals.task_postrun, self._on_postrun),
            (signals.task_received, self._on_received),
            (signals.task_failure, self._on_failure),
            (signals.task_revoked, self._on_revoked),
            (signals.worker_init, self._on_worker_init),
        ):
            signal.connect(receiver, weak=False, dispatch_uid=name)

    def _instrument_all(self, *_: Any, **__: Any) -> None:
        for task in list(self._app._tasks.values()):
            self._instrument(task)

    def _instrument_promised(self, promise: Any) -> None:
        self._instrument(promise._get_current_object())

    def _instrumenting(self, register: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(register)
        def registered(*args: Any, **kwargs: Any) -> Any:
            task = register(*args, **kwargs)
            self._instrument(task)
            return task

        return registered

    def _instrument(self, task: Any) -> None:
        foreign = task.name.startswith("celery.") and task.name != _ACCUMULATE
        if foreign or _MARK in task.__dict__:
            return
        setattr(task, _MARK, self)
        kind = type(task)
        _add_property(kind, "streams", run_streams)
        if issubclass(kind, ChatAgent):
            _add_property(kind, "chat", run_chat)
        if task_has_custom(task, "__call__"):
            _wrap_call(kind)
        else:
            task.run = self._wrapped(task, task.run)
        task.on_replace = _drained_before(task.on_replace, replaces=True)
        task.retry = _put_back_before(task, _drained_before(task.retry))

    def _wrapped(self, task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def run_in_attempt(*args: Any, **kwargs: Any) -> Any:
            return self.execute(task, run, args, kwargs)

        return run_in_attempt

    def execute(self, task: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a task's body in its attempt."""
        if (refused := getattr(task.request, "_celery_streams_error", None)) is not None:
            raise refused
        attempt = running.get()
        direct = task.request.called_directly
        if attempt is not None and (direct or attempt.executing):
            return run(*args, **kwargs)  # a plain function call inside a running task
        if attempt is not None:
            if (wake := self._wake(task)) is not None:
                wake.claim(f"{task.request.hostname}/{task.request.id}")
            return attempt.execute(run, args, kwargs)
        return self._execute_directly(task, run, args, kwargs)

    def _execute_directly(self, task: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A task called as a function, outside any task: a run of its own, from here to here."""
        attempt = RunningAttempt(self._owner, task, identify(task.request), (args, kwargs))
        token = running.set(attempt)
        state: str | None = None
        try:
            result = attempt.execute(run, args, kwargs)
            state = states.SUCCESS
            return result
        finally:
            try:
                attempt.leave(state)
            finally:
                running.reset(token)

    def _wake(self, task: Any) -> WakeTask | None:
        """The wake that a subscription has sent the task as, if one has."""

        def connect() -> tuple[RedisLink, Layout]:
            return self._owner.runtime.link, self._owner.runtime.layout

        wake = WakeTask.of(task.request, connect)
        task.request._celery_streams_wake = wake
        return wake

    def _mine(self, task: Any) -> bool:
        return getattr(task, "__dict__", {}).get(_MARK) is self

    def _on_publish(self, headers: Any = None, **_: Any) -> None:
        """Tell the tasks of a chat agent which session they work for."""
        attempt = running.get()
        session = attempt.session if isinstance(attempt, RunningAttempt) else None
        if session is not None and isinstance(headers, dict):
            headers.setdefault(SESSION_HEADER, session)

    def _on_prerun(
        self, task_id: str, task: Any, args: Any = (), kwargs: Any = None, **_: Any
    ) -> None:
        if not self._mine(task):
            return
        try:
            outer = running.get()
            identity = identify(
                task.request,
                grace=self._owner.redelivery_grace(task),
                inside=outer.identity if isinstance(outer, RunningAttempt) else None,
            )
            attempt: RunningAttempt | RefusedAttempt = RunningAttempt(
                self._owner, task, identity, (args, kwargs or {})
            )
        except StreamError as error:
            if isinstance(task, ChatAgent):
                # Celery swallows what a signal handler raises: the body's wrapper raises it.
                task.request._celery_streams_error = error
                return
            attempt = RefusedAttempt(task_id, error)
        task.request._celery_streams_token = running.set(attempt)

    def _on_postrun(self, task_id: str, task: Any, state: str | None = None, **_: Any) -> None:
        token = getattr(task.request, "_celery_streams_token", None)
        wake: WakeTask | None = getattr(task.request, "_celery_streams_wake", None)
        if wake is not None:
            try:
                wake.finish(state)
            except Exception:
                logger.exception("could not end the wake of %s[%s]", task.name, task_id)
        attempt = running.get()
        if token is None or attempt is None or not self._mine(task):
            return
        try:
            attempt.leave(state)
        except Exception:
            logger.exception("could not end the streams of %s[%s]", task.name, task_id)
        finally:
            running.reset(token)

    def _on_worker_init(self, sender: Any = None, **_: Any) -> None:
        """Import before the fork what each process of the pool would import at its first chunk."""
        if getattr(sender, "app", self._app) is self._app:
            with suppress(StreamError):  # whoever uses a stream is told
                import_early(self._owner.settings)

    def _on_received(self, request: Any, sender: Any = None, **_: Any) -> None:
        if self._mine(request.task):
            self._deliveries.received(request, getattr(sender, "pool", None))

    def _on_failure(self, sender: Any, task_id: str, **_: Any) -> None:
        attempt = running.get()
        if not self._mine(sender) or (attempt is not None and attempt.run_id == task_id):
            return
        received = self._deliveries.judged(task_id)
        self._end_turn(sender, received, task_id, stopped=False)
        request = sender.request
        if request.id != task_id and received is not None:
            request = Context(received.request_dict, delivery_info=received.delivery_info)
        self._end_for_worker(request, task_id, states.FAILURE)

    def _on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        if self._mine(sender):
            self._end_turn(sender, request, request.id, stopped=True)
            self._end_for_worker(request, request.id, states.REVOKED)

    def _end_turn(self, task: Any, request: Any, task_id: str, *, stopped: bool) -> None:
        """End the turn of a chat agent whose own process cannot."""
        if not isinstance(task, ChatAgent) or request is None:
            return
        try:
            args, kwargs = tuple(request.args or ()), dict(request.kwargs or {})
            session_id = session_id_of(task.run, task.session_argument, args, kwargs)
            runtime, app = self._owner.runtime, self._owner.app
            end_for_worker(task, session_id, task_id, runtime, app, stopped=stopped)
        except Exception as error:
            logger.warning("could not end the turn of %s[%s]: %s", task.name, task_id, error)

    def _end_for_worker(self, request: Any, task_id: str, state: str) -> None:
        """End a run whose own process cannot."""
        try:
            known = identify(request).attempt if getattr(request, "id", None) == task_id else None
            process = self._deliveries.ended_process(task_id)
            attempt = Attempt(
                task_id,
                "" if process is None else f"@{process}",
                generation=known.generation if known else 0,
                redelivered=bool(known and known.redelivered),
            )
            self._owner.runtime.end_run(Ending(attempt, state, always=True))
        except StreamError as error:
            logger.warning("could not close the streams of run %s (%s): %s", task_id, state, error)


def _add_property(kind: type, name: str, look_up: Callable[[], Any]) -> None:
    existing = getattr(kind, name, None)
    if isinstance(existing, property) and getattr(existing.fget, _MARK, False):
        return
    if name in _own_attributes(kind):
        logger.warning(
            "the task class %s has an attribute %r of its own, so self.%s stays that; "
            "use celery_streams.current_%s in it",
            kind.__name__,
            name,
            name,
            name,
        )
        return

    def get(_: Any) -> Any:
        return look_up()

    setattr(get, _MARK, True)
    setattr(kind, name, property(get, doc=look_up.__doc__))


def _own_attributes(kind: type) -> set[str]:
    """Names that user classes define (Celery's and ours do not count)."""
    ours = {Task, ChatAgent, object}
    return {name for base in kind.__mro__ if base not in ours for name in vars(base)}


def _wrap_call(kind: Any) -> None:
    """Wrap a class's own ``__call__``; which app's hooks apply is the task's to know."""
    original = kind.__call__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def call_in_attempt(self: Any, *args: Any, **kwargs: Any) -> Any:
        hooks: Lifecycle | None = self.__dict__.get(_MARK)
        if hooks is None:
            return original(self, *args, **kwargs)
        return hooks.execute(self, functools.partial(original, self), args, kwargs)

    setattr(call_in_attempt, _MARK, True)
    kind.__call__ = call_in_attempt


def _put_back_before(task: Any, retry: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``retry`` of a task that may be a subscription's wake: the next attempt is that, too."""

    @functools.wraps(retry)
    def retrying(*args: Any, **kwargs: Any) -> Any:
        wake: WakeTask | None = getattr(task.request, "_celery_streams_wake", None)
        if wake is None:
            return retry(*args, **kwargs)
        wake.put_back()
        try:
            return retry(*args, **kwargs)
        except Retry as planned:
            wake.expect(_seconds_until(planned.when))
            raise

    return retrying


def _seconds_until(when: Any) -> float:
    """How long a retry waits: seconds, or the time it is planned for."""
    if isinstance(when, datetime):
        return (when - datetime.now(when.tzinfo)).total_seconds()
    return float(when or 0.0)


def _drained_before(succeed: Callable[..., Any], *, replaces: bool = False) -> Callable[..., Any]:
    """Wrap what sends the message for the run's next attempt."""

    @functools.wraps(succeed)
    def drained(*args: Any, **kwargs: Any) -> Any:
        attempt = running.get()
        if attempt is not None:
            attempt.replaced = attempt.replaced or replaces
            attempt.drain_before_successor()
        return succeed(*args, **kwargs)

    return drained
