"""The life-cycle tests' server: broker, results and runs on Valkey, chunks on S2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.lifecycle.conftest import eager, prefork
from tests.s2.tokens import TokenServer
from tests.servers import ValkeyProcess

__all__ = ["eager", "prefork"]


class ChunksOnS2(ValkeyProcess):
    """A Valkey whose ``url``, as a store's, leads to S2."""

    s2_url = ""

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.s2_url or self.url_for()

    def client(self, **options: Any) -> redis.Redis:
        """Of the Valkey, where the runs are."""
        s2_url, self.s2_url = self.s2_url, ""
        try:
            return super().client(**options)
        finally:
            self.s2_url = s2_url


@pytest.fixture(scope="session")
def lifecycle_server(shared_tokens: TokenServer) -> Iterator[ValkeyProcess]:
    """Workers and clients find the runs' Redis by the setting of its own."""
    with ChunksOnS2() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_STREAMS_REDIS_URL", server.url_for())
        server.s2_url = shared_tokens.url()
        yield server
