"""Every error the package raises on purpose; each derives from :class:`StreamError`.

A message says what happened, to which stream, and what to do next. Secrets (URLs with
passwords, tokens, grants) never appear in one.
"""

from __future__ import annotations


class StreamError(Exception):
    """Base class: catch this to catch everything celery-streams raises.

    ``unsent`` is the number of chunks that ``write()`` had accepted and that are not known to
    be durable; it is set on errors that end a writer.
    """

    unsent: int = 0


class ConfigurationError(StreamError):
    """A setting is missing or wrong; no retry will help until it is changed."""


class InvalidName(StreamError, ValueError):
    """A run id, session id or key that cannot name a stream."""


class InvalidChunk(StreamError, TypeError):
    """A value that JSON cannot carry. ``path`` leads to the offending value (``$.a[3]``)."""

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class InvalidOffset(StreamError, ValueError):
    """An offset that is neither an integer nor ``"now"``."""


class ChunkTooLarge(StreamError, ValueError):
    """A serialized chunk over ``max_chunk_bytes``; nothing of it was written.

    ``size`` and ``limit`` are bytes; ``chunk_type`` is the chunk's own ``"type"`` if it has one.
    """

    def __init__(
        self, message: str, *, size: int = 0, limit: int = 0, chunk_type: str | None = None
    ) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit
        self.chunk_type = chunk_type


class StreamClosed(StreamError):
    """The stream has ended; nothing can be appended to it any more."""


class StreamFenced(StreamError):
    """A later attempt of the same run has written to the stream; this attempt must stop."""


class StreamNotFound(StreamError, LookupError):
    """No such run or stream (or it has expired).

    ``run_state`` is how the stream's run is doing, of a run whose stream may yet be opened.
    """

    def __init__(self, message: str, *, run_state: str | None = None) -> None:
        super().__init__(message)
        self.run_state = run_state


class OffsetGone(StreamError, LookupError):
    """The offset lies before the oldest retained chunk. ``first`` is the oldest one there is."""

    def __init__(self, message: str, *, first: int = 0) -> None:
        super().__init__(message)
        self.first = first


class CredentialsRejected(StreamError):
    """The store refused the write credentials: revoked, expired or unknown."""


class StoreUnavailable(StreamError, ConnectionError):
    """The store could not be reached, or could not accept writes, within the deadline."""


class ChunksLost(StreamError):
    """The store has lost chunks it had acknowledged (e.g. a failover to a stale replica)."""


class WriteTimeout(StreamError, TimeoutError):
    """The write buffer stayed full, or a flush was not acknowledged, for the whole timeout."""


class ReadTimeout(StreamError, TimeoutError):
    """No chunk arrived for ``timeout`` seconds. ``offset`` is where to resume."""

    def __init__(self, message: str, *, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class RunFinished(StreamError):
    """The run has ended, so no stream of it can be opened or written. ``state`` is how."""

    def __init__(self, message: str, *, state: str = "") -> None:
        super().__init__(message)
        self.state = state


class TokenRejected(StreamError):
    """An access token that is malformed, expired, or signed by nobody who is trusted."""


class OutsideTask(StreamError, RuntimeError):
    """Run-scoped streams were used where no task is running."""


class TooManyMessages(StreamError):
    """As many messages wait for a chat agent as may; nothing was sent."""


class TurnBusy(StreamError):
    """A chat-agent task was called directly while a turn of the session is active."""


class ModelFailed(StreamError):
    """A model's stream said that it has failed, where its library raises nothing. ``code`` is the
    server's name of the reason, if it gave one."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class StopRequested(StreamError):
    """Somebody has asked the turn to stop: out of the next write, where the task wants that."""
