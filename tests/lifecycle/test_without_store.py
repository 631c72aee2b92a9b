"""Apps whose tasks use no stream, on a machine without any store."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery

from celery_streams import ConfigurationError, Streams


def test_tasks_that_use_no_stream_need_no_store(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a retry nor a subtask says a word about the store that is not configured."""
    monkeypatch.delenv("CELERY_STREAMS_URL", raising=False)
    app = Celery("storeless", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    streams = Streams(app)

    @app.task(bind=True, max_retries=2)
    def flaky(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task
    def parent() -> int:
        return int(flaky.delay().get(disable_sync_subtasks=False))

    with caplog.at_level(logging.INFO, logger="celery_streams"):
        assert parent.delay().get() == 2
    ours = [record for record in caplog.records if record.name.startswith("celery_streams")]
    assert ours == []
    with pytest.raises(ConfigurationError, match="CELERY_STREAMS_URL"):
        streams.head("any")
