"""The life-cycle tests' server: broker, results and runs on Valkey, chunks on S2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lifecycle.conftest import eager, prefork
from tests.s2.servers import ChunksOnS2
from tests.s2.tokens import TokenServer
from tests.servers import ValkeyProcess

__all__ = ["eager", "prefork"]


@pytest.fixture(scope="session")
def lifecycle_server(shared_tokens: TokenServer) -> Iterator[ValkeyProcess]:
    """Workers and clients find the runs' Redis by the setting of its own."""
    with ChunksOnS2() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_STREAMS_REDIS_URL", server.url_for())
        server.s2_url = shared_tokens.url()
        yield server
