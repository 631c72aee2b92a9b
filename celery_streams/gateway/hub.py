"""Live fan-out: one hub a process, one topic a stream that anybody follows.

The hub keeps the topics and the one feed they live on. Silence is not trusted: idle topics are
compared with their streams now and then, and a silent run is inquired into.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("celery_streams.gateway")

#: Seconds between the hub's rounds.
_TICK = 1.0
#: Seconds of silence after which a follower gets a sign of life.
_HEARTBEAT = 15.0
#: Heads asked for in one round trip.
_HEADS = 500
#: Runs whose end is looked into at the same time.
_INQUIRIES = 4
