"""What to do with a failed send, decided without I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto

from celery_streams.errors import CredentialsRejected, StoreUnavailable, StreamError

#: Seconds: the first pause, and the longest.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0


class Action(Enum):
    """The flusher's next step for a channel whose send failed."""

    RENEW = auto()  #: evict the credentials, initialize again, resend
    RETRY = auto()  #: resend the same batch
    END = auto()  #: the writer is over; say so


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, to be taken after ``pause`` seconds."""

    action: Action
    pause: float = 0.0


def decide(error: Exception, failures: int, failing_for: float, deadline: float) -> Decision:
    """The answer to the ``failures``-th consecutive failure of a channel.

    Rejected credentials are renewed and transient errors retried, until the channel has been
    failing for ``deadline`` seconds; everything else (fenced, closed, a wrong password) ends
    the writer at once. The first retry is immediate: a connection that was cut while idle is
    the usual reason.
    """
    if failing_for >= deadline or not isinstance(error, (CredentialsRejected, StoreUnavailable)):
        return Decision(Action.END)
    action = Action.RENEW if isinstance(error, CredentialsRejected) else Action.RETRY
    return Decision(action, pause_before(failures))


def pause_before(failures: int) -> float:
    """Exponential backoff with jitter: none, then 10-20 ms, doubling up to 1-2 s."""
    if failures <= 1:
        return 0.0
    longest = min(FIRST_PAUSE * 2.0 ** min(failures - 2, 20), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)


def final(error: Exception, failing_for: float) -> StreamError:
    """The error that ends the writer, as its user sees it."""
    if isinstance(error, StoreUnavailable):
        ended: StreamError = StoreUnavailable(f"gave up after {failing_for:.0f} s: {error}")
    elif isinstance(error, CredentialsRejected):
        ended = CredentialsRejected(
            f"new credentials were refused again and again for {failing_for:.0f} s: {error}"
        )
    elif isinstance(error, StreamError):
        return error
    else:
        ended = StreamError(f"unexpected failure while sending: {error!r}")
    ended.__cause__ = error
    return ended
