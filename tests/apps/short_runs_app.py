"""A gateway's app whose runs open their stream and end just when they are asked about."""

from __future__ import annotations

import os

from celery import Celery

from celery_streams import Streams
from celery_streams.contracts import Attempt


class ShortRuns(Streams):
    """Each run does all it ever does between the look at its stream and the look at it."""

    def end_if_over(self, run_id: str) -> str | None:
        """Three chunks, and the end: then it is over."""
        if not self.runtime.registry.describe(run_id).keys:
            with self.write_to(run_id, create=True) as writer:
                for number in range(3):
                    writer.write(number)
            self.runtime.registry.finish(Attempt(run_id, ""), "SUCCESS")
        return super().end_if_over(run_id)


app = Celery("short runs", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
)
streams = ShortRuns(app)
