"""Real servers for tests: children of this process, on free ports, gone when it is gone."""

from __future__ import annotations

from tests.servers.cluster import Cluster
from tests.servers.distance import Distance
from tests.servers.process import RedisProcess, ServerProcess, ValkeyProcess, redis7_missing
from tests.servers.proxy import Proxy

__all__ = [
    "Cluster",
    "Distance",
    "Proxy",
    "RedisProcess",
    "ServerProcess",
    "ValkeyProcess",
    "redis7_missing",
]
