"""The lifecycle app, and a task whose attempts are a while apart."""

from __future__ import annotations

from typing import Any

from tests.apps.lifecycle_app import app

__all__ = ["app", "pausing"]


@app.task(bind=True)
def pausing(self: Any, seconds: float) -> int:
    """Write, retry after a pause, write."""
    self.streams.append(self.streams.attempt)
    if not self.request.retries:
        raise self.retry(countdown=seconds)
    return self.streams.attempt
