"""The warning a chat-agent run gets when it uses run-scoped streams; once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery_streams.errors import StreamError

logger = logging.getLogger("celery_streams.chat")


class Guardrail:
    """Warns once per run that ``streams.*`` does not reach the chat.

    Run-scoped streams work in a chat-agent run, but the chat's front end does not see them,
    and that is hardly ever what was meant. The run's first attempt that gets here warns;
    ``first_time`` (one round trip, at most once an attempt) knows whether another has.
    """

    def __init__(self, run_id: str, task_name: str, first_time: Callable[[], bool]) -> None:
        self._run_id = run_id
        self._task_name = task_name
        self._first_time = first_time
        self._done = False

    def __call__(self, call: str) -> None:
        """``call`` is what was used, such as ``write``."""
        if self._done:
            return
        self._done = True
        try:
            first = self._first_time()
        except StreamError:
            first = True
        if first:
            logger.warning(
                "streams.%s() was called in the chat-agent task %s[%s]: run-scoped streams are "
                "not visible in the chat session. Use chat.response.write() for parts of the "
                "answer, or chat.stream.* for other session data. (Said once per run.)",
                call,
                self._task_name,
                self._run_id,
            )
