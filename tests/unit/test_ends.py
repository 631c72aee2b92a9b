"""Ends of runs that cannot be recorded now: they wait, in bounded number and with few words."""

from __future__ import annotations

import logging

import pytest

from celery_streams import Streams
from celery_streams.contracts import Attempt
from celery_streams.runtime import Ending


def test_ends_that_wait_for_the_store_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    """Of a store that stays away; a tick asks it once, and speaks of none of them."""
    streams = Streams(url="redis://127.0.0.1:1/0", connect_timeout=0.2)
    runtime = streams.runtime
    caplog.set_level(logging.ERROR)
    for number in range(3000):
        runtime.end_run(Ending(Attempt(f"run{number}", "a"), "FAILURE", always=True))
    caplog.set_level(logging.WARNING)
    caplog.clear()
    assert runtime._keep_alive()
    assert len(runtime._living.endings) == 1000
    assert runtime._living.endings[-1].attempt.run_id == "run2999"
    assert caplog.records == []
