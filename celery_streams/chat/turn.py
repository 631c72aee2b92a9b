"""The turn that runs in this task: :class:`Turn`."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from celery import Celery
from celery.exceptions import Ignore, Reject, Retry
from pydantic_core import to_json

from celery_streams.chat.agent import ChatAgent
from celery_streams.chat.branches import Left
from celery_streams.chat.dispatch import HEADER, dispatch_next
from celery_streams.chat.history import asked, gone_on_with, with_reply, with_taken
from celery_streams.chat.insisting import insist
from celery_streams.chat.keeping import opened, opened_from_snapshot, saved
from celery_streams.chat.message import ResponseMessage
from celery_streams.chat.requests import Message, Request, new_id, user_message
from celery_streams.chat.response import ChatResponse
from celery_streams.chat.stopping import Stopping
from celery_streams.chat.turns import WRITER, Begun, TurnCommands
from celery_streams.contracts import Attempt
from celery_streams.errors import (
    OutsideTask,
    StopRequested,
    StreamError,
    StreamFenced,
)
from celery_streams.redis.calls import Call
from celery_streams.redis.client import RedisLink
from celery_streams.runtime import Runtime
from celery_streams.slots import Slot
from celery_streams.writing.writers import AttemptWriters

logger = logging.getLogger("celery_streams.chat")

T = TypeVar("T")


class Turn:
    """One attempt of a turn, from its beginning to whatever ends it.

    Args:
        task: the chat-agent task.
        run_id, attempt_id, first: who executes; ``first`` unless it was delivered before.
        session_id: the session.
        runtime, app: this process's connections, and the app to send the next turn with.
    """

    def __init__(
        self,
        task: ChatAgent,
        run_id: str,
        attempt: Attempt,
        session_id: str,
        *,
        first: bool,
        runtime: Callable[[], Runtime],
        app: Callable[[], Celery | None],
    ) -> None:
        self.stopping = Stopping()
        self.messages: list[Message] = []
        self._left = Left()
        #: The history is known: it may be saved.
        self._opened = False
        self._task = task
        self._run_id = run_id
        self._attempt = attempt
        self._attempt_id = attempt.attempt_id
        self._session_id = session_id
        self._first = first
        self._runtime = runtime
        self._app = app
        self._begun: Begun | None = None
        self._writers: AttemptWriters | None = None
        self._response: ChatResponse | None = None
        self._opening = threading.Lock()

    @property
    def begun(self) -> Begun:
        """What the turn began with. Raises :class:`OutsideTask`."""
        if self._begun is None:
            raise OutsideTask("the turn has not begun: self.chat is for the task's body and hooks")
        return self._begun

    @property
    def response(self) -> ChatResponse:
        """The answer."""
        if self._response is None:
            raise OutsideTask("the turn has not begun: self.chat is for the task's body and hooks")
        return self._response

    @property
    def message(self) -> Message | None:
        """What is to be answered."""
        return self.messages[-1] if self.messages else None

    def writers(self) -> AttemptWriters:
        """The writers of this attempt; the store refuses them once another has begun."""
        with self._opening:
            if self._writers is None:
                runtime = self._runtime()
                writer = self._attempt
                if runtime.records_runs:
                    epoch = self.begun.epoch
                    writer = Attempt(WRITER, self._attempt_id, generation=epoch, redelivered=True)
                self._writers = AttemptWriters(
                    writer,
                    runtime.open_channel,
                    runtime.store,
                    runtime.cache,
                    runtime.settings,
                )
            return self._writers

    def forget_writers(self) -> None:
        """Start anew in a forked child."""
        self._opening = threading.Lock()
        self._writers = None

    def take(self) -> list[Message]:
        """The messages that wait; they are this turn's to answer now."""
        taken = self._insist(self._commands.take(self._session_id, self._attempt_id))
        known = len(self.messages)
        self.messages = with_taken(self.messages, taken)
        return self.messages[known:]

    def execute(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the task's body as a turn.

        Raises:
            Ignore: the turn is not this task's (any more): it was answered, or taken over.
            TurnBusy: the task was called directly while a turn is active.
        """
        runtime = self._runtime()
        if not runtime.records_runs:
            return self._unmanaged(body, args, kwargs)
        self._begin(args, kwargs)
        channel = self._commands.stop_channel(self._session_id)
        runtime.listener.watch(channel, lambda _: self._look(), self._look)
        runtime.beat(self._renew)
        try:
            return self._run(body, args, kwargs)
        except StreamFenced as error:
            raise self._lost() from error
        finally:
            runtime.rest(self._renew)
            runtime.listener.ignore(channel)

    def _unmanaged(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A turn on a store that is not ours: nobody waits, stops it, or takes it over."""
        request = self._direct(args, kwargs)
        turn_id = new_id("turn")
        self._begun = Begun(turn_id, request.reply, 1, 0, False, request, None, [])
        self.messages = asked(self._task.load_messages(self._session_id), request)
        response = self._response = self._answer(self._begun)
        slot = Slot.session(self._session_id, "out")
        self.writers().writer(slot).write({"type": "start", "messageId": request.reply})
        self.writers().writer(slot).write({"type": "start-step"})
        result = body(*args, **self._with_message(body, args, kwargs))
        response.end_parts()
        for chunk in (*response.last_chunks(), {"type": "finish"}):
            self.writers().writer(slot).write(chunk)
        self.writers().drain(self._runtime().settings.drain_timeout)
        self._task.save_messages(self._session_id, with_reply(self.messages, response.message))
        return result

    def _run(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = None
        try:
            self._open()
            if not self.stopping.is_set():
                if self._is_first():
                    self._task.on_chat_start()
                self._task.on_turn_start()
                result = body(*args, **self._with_message(body, args, kwargs))
        except StopRequested:
            self.stopping.set()
        except Retry:
            self._suspend()
            raise
        except Reject as reject:
            if reject.requeue:
                self._suspend()
            else:
                self._end(error="the task was rejected")
            raise
        except StreamFenced:
            raise
        except Ignore:
            self._end()
            raise
        except Exception as error:
            self._fail(error)
            raise
        self._end()
        self._call_hook(self._task.on_turn_complete)
        return result

    def _is_first(self) -> bool:
        """Whether the session has no past, not even one that was edited away."""
        return self.begun.history is None and len(self.messages) <= 1 and not self._left.messages

    def _begin(self, args: Any, kwargs: Any) -> None:
        sent = bool((self._task.request.get("headers") or {}).get(HEADER)) or bool(
            self._task.request.get(HEADER)
        )
        direct = None if sent else self._direct(args, kwargs)
        begun = self._insist(
            self._commands.begin(
                self._session_id, self._run_id, self._attempt_id, first=self._first, direct=direct
            )
        )
        if begun is None:
            logger.info(
                "%s[%s]: its turn of session %s has been answered, or taken over; nothing is "
                "left to do",
                self._task.name,
                self._run_id,
                self._session_id,
            )
            raise Ignore
        self._begun = begun
        if begun.stop:
            self.stopping.set()
        self.messages, self._left = opened_from_snapshot(begun.request, begun.history, begun.taken)
        self._response = self._answer(begun)

    def _open(self) -> None:
        """Ask the task's hooks for the history."""
        begun = self.begun
        self.messages, self._left = opened(
            self._task,
            self._session_id,
            begun.request,
            begun.history,
            begun.taken,
            lambda *which: self._insist(self._commands.branch(*which)),
            again=begun.number > 1,
        )
        self._opened = True
        self._response = self._answer(begun)
        self._check_attempts()

    def _check_attempts(self) -> None:
        attempts = self.begun.number - int(self._task.request.retries or 0)
        if attempts > self._task.max_attempts:
            raise StreamError(f"a turn has had {self._task.max_attempts} attempts, which all died")

    def _answer(self, begun: Begun) -> ChatResponse:
        continued = gone_on_with(self.messages, begun.reply, begun.taken)
        message = ResponseMessage(begun.reply, continued)
        message.add({"type": "start-step"})
        slot = Slot.session(self._session_id, "out")

        def send(chunk: Any) -> None:
            self.writers().writer(slot).write(chunk)

        return ChatResponse(
            send,
            message,
            fold_steps=self._task.fold_steps,
            stopping=self.stopping,
            raise_on_stop=self._task.raise_on_stop,
        )

    def _direct(self, args: Any, kwargs: Any) -> Request:
        """The request that a direct call of the task amounts to."""
        given = kwargs.get("message")
        if given is None:
            try:
                given = (
                    inspect.signature(self._task.run).bind(*args, **kwargs).arguments.get("message")
                )
            except TypeError:
                given = None
        is_message = isinstance(given, str) or (isinstance(given, dict) and "parts" in given)
        return Request(self._task.name, message=user_message(given) if is_message else None)

    def _with_message(self, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The arguments, with the message if the task takes one and was given none."""
        parameters = inspect.signature(self._task.run).parameters
        if "message" not in parameters or "message" in kwargs:
            return kwargs
        if list(parameters).index("message") < len(args):
            return kwargs
        return {**kwargs, "message": self.message}

    def _end(self, *, error: str | None = None) -> None:
        """Store the answer and end the turn, whichever way."""
        response = self.response
        chunks: list[dict[str, Any]] = []
        if error is not None:
            response.put({"type": "error", "errorText": error})
            chunks.append({"type": "finish", "finishReason": "error"})
        elif self.stopping.is_set():
            response.end_parts()
            response.put({"type": "message-metadata", "messageMetadata": {"aborted": True}})
            chunks += [*response.last_chunks(), {"type": "abort", "reason": "stopped"}]
        else:
            response.end_parts()
            reason = {"finishReason": response.finish_reason} if response.finish_reason else {}
            chunks += [*response.last_chunks(), {"type": "finish", **reason}]
        if self._writers is not None:
            self._writers.drain(self._runtime().settings.drain_timeout)
        message = response.message
        messages = self.messages
        if any(part["type"] != "step-start" for part in message["parts"]):
            messages = with_reply(messages, message)
        unsaved = self._save(messages)
        if unsaved is not None and error is None:
            chunks = [
                {"type": "error", "errorText": self._task.error_text(unsaved)},
                {"type": "finish", "finishReason": "error"},
            ]
        ended, due = self._insist(
            self._commands.finish(
                self._session_id,
                self._run_id,
                self._attempt_id,
                messages,
                [to_json(chunk) for chunk in chunks],
                self._left,
            )
        )
        if not ended:
            raise self._lost()
        self.messages = messages
        dispatch_next(self._app(), self._link, self._commands, due)
        if unsaved is not None:
            self._call_hook(lambda: self._task.on_error(unsaved))
            raise unsaved

    def _save(self, messages: list[Message]) -> Exception | None:
        if not self._opened:
            return None
        return saved(self._task, self._session_id, self.begun.turn_id, messages, self._left)

    def _fail(self, error: Exception) -> None:
        self._call_hook(lambda: self._task.on_error(error))
        try:
            self._end(error=self._task.error_text(error))
        except (StreamError, Ignore) as problem:
            logger.error("could not end the turn of session %s: %s", self._session_id, problem)
        except Exception:
            logger.exception("could not save the messages of session %s", self._session_id)

    def _suspend(self) -> None:
        if self._writers is not None:
            self._writers.drain(self._runtime().settings.drain_timeout)
        self._insist(self._commands.suspend(self._session_id, self._attempt_id))

    def _lost(self) -> Ignore:
        logger.warning(
            "%s[%s]: another attempt has taken over its turn of session %s",
            self._task.name,
            self._run_id,
            self._session_id,
        )
        return Ignore()

    def _renew(self) -> None:
        self._heed(self._link.call(self._commands.renew(self._session_id, self._attempt_id)))

    def _look(self) -> None:
        call = self._commands.renew(self._session_id, self._attempt_id, ask=True)
        self._heed(self._link.call(call))

    def _heed(self, answer: list[int]) -> None:
        mine, stop = answer
        if stop or not mine:
            self.stopping.set()

    def _call_hook(self, hook: Callable[[], object]) -> None:
        try:
            hook()
        except Exception:
            logger.exception("a hook of %s failed", self._task.name)

    @cached_property
    def _commands(self) -> TurnCommands:
        runtime = self._runtime()
        return TurnCommands(runtime.layout, runtime.settings)

    @property
    def _link(self) -> RedisLink:
        return self._runtime().link

    def _insist(self, call: Call[T]) -> T:
        return insist(self._link, call, self._runtime().settings)
