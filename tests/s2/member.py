"""A process of a fleet: writes to one stream in a hot loop, and says what it did."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from celery import Celery

from celery_streams import Streams
from celery_streams.slots import Slot

RUN = "run-1"
SLOT = Slot.run(RUN)


def connected(redis_url: str, s2_url: str, **options: Any) -> Streams:
    """Streams whose chunks are in S2 and whose credentials are shared in Redis."""
    app = Celery("member", set_as_current=False)
    return Streams(app, url=s2_url, redis_url=redis_url, secret="test secret", **options)


def main() -> None:
    """Arguments: Redis URL, S2 URL, name, chunks, seconds the loop takes, settings as JSON."""
    redis_url, s2_url, name, chunks, seconds, options = sys.argv[1:]
    streams = connected(redis_url, s2_url, **json.loads(options))
    pause = float(seconds) / int(chunks)
    print("ready", flush=True)
    sys.stdin.readline()
    with streams.write_to(RUN, create=True) as writer:
        for number in range(int(chunks)):
            writer.write([int(name), number])
            if pause:
                time.sleep(pause)
        writer.wait()
    counts = streams.stats()
    print(json.dumps({"initializes": counts.initializes, "pid": os.getpid()}), flush=True)
    streams.close()


if __name__ == "__main__":
    main()
