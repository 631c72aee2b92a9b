"""Telling an operator of an outage: that it began, that it lasts, that it is over."""

from __future__ import annotations

import logging
import time

#: Seconds between lines that say that it still lasts.
_REMINDER = 60.0


class Outage:
    """What cannot be done for now, as few lines in a log rather than one for each attempt.

    Args:
        logger: where to say it.
        doing: what it is that fails, such as ``"live events"``.
    """

    def __init__(self, logger: logging.Logger, doing: str) -> None:
        self._logger = logger
        self._doing = doing
        self._since: float | None = None
        self._said_at = 0.0

    def failed(self, error: Exception) -> None:
        """An attempt has failed, and will be made again."""
        now = time.monotonic()
        if self._since is None:
            self._since = self._said_at = now
            self._logger.warning("%s are interrupted, trying again: %s", self._doing, error)
        elif now - self._said_at >= _REMINDER:
            self._said_at = now
            down = now - self._since
            self._logger.warning("%s: interrupted for %.0f s now: %s", self._doing, down, error)

    def over(self) -> None:
        """An attempt has succeeded."""
        if self._since is not None:
            down = time.monotonic() - self._since
            self._since = None
            self._logger.warning("%s are back after %.1f s", self._doing, down)
