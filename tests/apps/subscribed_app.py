"""A Celery app whose tasks stream, and others that are sent when they have."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_streams import Streams

app = Celery("subscribed")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL"),
    result_backend=os.environ.get("TEST_RESULT_BACKEND"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
)
streams = Streams(app)


@app.task(bind=True)
def produce(self, count):
    """Stream some chunks."""
    for number in range(count):
        self.streams.write(number)


@app.task
def note(wake):
    """Write down which chunks the wake is about."""
    client = streams.runtime.link.client
    for each in wake["streams"]:
        start, end = int(each["acked_offset"]), int(each["tail_offset"])
        for chunk in range(start, end):
            client.hincrby("noted", f"{each['path']}#{chunk}", 1)


@app.task
def fail_first(wake):
    """Fail twice, then do it."""
    client = streams.runtime.link.client
    tries = client.rpush("tries", f"{time.time()}")
    if tries <= 2:
        raise ValueError("not yet")
    note(wake)


@app.task(bind=True, max_retries=2)
def retry_twice(self, wake):
    """Retry, first after longer than a lease, then at once; one more process could be quicker."""
    streams.runtime.link.client.rpush("ids", self.request.id)
    if self.request.retries < 2:
        raise self.retry(countdown=(1.5, 0)[self.request.retries])
    note(wake)


@app.task(bind=True, autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def retry_in_vain(self, wake):
    """Use up all retries, and do it when sent again."""
    client = streams.runtime.link.client
    if client.rpush("ids", self.request.id) < 3:
        raise ValueError("not yet")
    note(wake)


@app.task
def slow(wake):
    """Take longer than the lease."""
    streams.runtime.link.client.incr("slow")
    time.sleep(3)
    note(wake)


@app.task
def die_first(wake):
    """End the whole process the first time."""
    if streams.runtime.link.client.incr("deaths") == 1:
        os._exit(9)
    note(wake)
