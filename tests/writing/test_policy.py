"""What to do with a failed send: a plain function."""

from __future__ import annotations

import pytest

from celery_streams.errors import (
    ChunksLost,
    ConfigurationError,
    CredentialsRejected,
    RunFinished,
    StoreUnavailable,
    StreamClosed,
    StreamError,
    StreamFenced,
)
from celery_streams.writing.policy import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Action,
    decide,
    final,
    pause_before,
)


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (StoreUnavailable("away"), Action.RETRY),
        (CredentialsRejected("revoked"), Action.RENEW),
        (StreamFenced("zombie"), Action.END),
        (StreamClosed("over"), Action.END),
        (RunFinished("over"), Action.END),
        (ChunksLost("flushed"), Action.END),
        (ConfigurationError("wrong password"), Action.END),
        (ValueError("a bug"), Action.END),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, action: Action) -> None:
    """Everything else ends the writer at once, whatever time is left."""
    assert decide(error, 1, 0.0, 45.0).action is action


@pytest.mark.parametrize("error", [StoreUnavailable("away"), CredentialsRejected("revoked")])
def test_trying_again_has_a_deadline(error: Exception) -> None:
    """Counted from the first failure in a row, not in attempts."""
    assert decide(error, 1000, 44.9, 45.0).action is not Action.END
    assert decide(error, 2, 45.0, 45.0).action is Action.END


def test_pauses_double_from_none_to_the_longest_with_jitter() -> None:
    """The first retry is immediate: a connection that was cut while idle is the usual reason."""
    assert pause_before(1) == 0.0
    for failures in range(2, 2000, 7):
        pauses = {pause_before(failures) for _ in range(20)}
        top = min(FIRST_PAUSE * 2.0 ** min(failures - 2, 20), LONGEST_PAUSE)
        assert all(top / 2 <= pause <= top for pause in pauses)
        assert len(pauses) > 1


def test_the_error_that_ends_a_writer_is_a_stream_error_that_says_why() -> None:
    """Its kind is kept, how long it was tried is added, and a bug is named as one."""
    assert "gave up after 45 s: away" in str(final(StoreUnavailable("away"), 45.2))
    assert "again and again for 45 s" in str(final(CredentialsRejected("no"), 45.2))
    fenced = StreamFenced("zombie")
    assert final(fenced, 0.0) is fenced
    bug = ValueError("a bug")
    assert type(final(bug, 0.0)) is StreamError
    assert final(bug, 0.0).__cause__ is bug
