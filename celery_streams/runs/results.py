"""What the app's result backend says of a run, within a bound: :class:`ResultStates`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("celery_streams.runs")

_NONE = "disabled://"
#: Its results are in a queue of the thread that sent the task, so nobody can ask for it.
_RPC = "rpc://"


@dataclass(slots=True, eq=False)
class _Question:
    run_id: str
    answered: threading.Event = field(default_factory=threading.Event)
    state: str | None = None


class ResultStates:
    """Asks the result backend of one app. Thread-safe; belongs to the process that made it.

    A backend that does not answer holds whoever asks for as long as Celery's own timeouts say,
    which is minutes. So one thread asks, for everybody; whoever has a question waits ``timeout``
    seconds for the answer, and not at all while the thread has waited longer than that for the
    answer to another one. The thread is started by the first question, if there is a backend.
    """

    def __init__(self, app: Any, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting: deque[_Question] = deque()
        self._asking_since: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def state(self, run_id: str) -> str | None:
        """The state of the run's task; ``None`` if there is no backend, or no answer in time."""
        uri = getattr(self._app.backend, "as_uri", str)()
        if uri in (_NONE, _RPC):
            return None if uri == _NONE else self._ask(run_id)
        question = _Question(run_id)
        with self._lock:
            if self._hangs():
                return None
            self._waiting.append(question)
            self._start_or_wake()
        if not question.answered.wait(self._timeout):
            with self._lock:
                if question in self._waiting:
                    self._waiting.remove(question)
            logger.info(
                "the result backend did not tell the state of %s within %g s",
                run_id,
                self._timeout,
            )
        return question.state

    def close(self) -> None:
        """End the thread, as soon as it has its answer. The next question starts another one."""
        with self._lock:
            self._closed = True
            self._wake.notify()

    def _hangs(self) -> bool:
        since = self._asking_since
        return since is not None and time.monotonic() - since > self._timeout

    def _start_or_wake(self) -> None:
        self._closed = False
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery-streams-results", daemon=True
            )
            self._thread.start()
        else:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._asking_since = None
                while not self._waiting:
                    if self._closed:
                        self._thread = None
                        return
                    self._wake.wait()
                question = self._waiting.popleft()
                self._asking_since = time.monotonic()
            question.state = self._ask(question.run_id)
            question.answered.set()

    def _ask(self, run_id: str) -> str | None:
        try:
            return str(self._app.AsyncResult(run_id).state)
        except Exception as error:
            logger.info("the result backend did not tell the state of %s: %s", run_id, error)
            return None
