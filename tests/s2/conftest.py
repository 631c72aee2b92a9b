"""Fixtures of the S2 tests: s2-lite, the token server in front of it, stores on both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from celery_streams.errors import StoreUnavailable
from celery_streams.settings import StreamsSettings
from celery_streams.stores.s2.address import S2Address, parse_s2_address
from celery_streams.stores.s2.asynchronous import AsyncS2Store
from celery_streams.stores.s2.authority import S2Authority
from celery_streams.stores.s2.store import S2Store
from tests.conftest import SettingsFor
from tests.s2.fleet import Fleet
from tests.s2.servers import S2Lite
from tests.s2.tokens import TokenServer
from tests.servers import ValkeyProcess
from tests.stores.contract.backend import SLOT, Backend, LoopStore, chunks_of

Connect = Callable[..., "S2Backend"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is: emptied before the test."""

    server: TokenServer

    @property
    def url(self) -> str:
        return self.server.url()

    def flush(self) -> None:
        """Remove all streams and tokens."""
        self.server.target.flush()
        self.server.tokens.clear()


class S2LoopStore(LoopStore):
    """:class:`AsyncS2Store` behind the sync protocol."""

    def __init__(self, address: S2Address, settings: StreamsSettings) -> None:
        self._runner = asyncio.Runner()
        self.inner = AsyncS2Store(address, settings)  # type: ignore[assignment]


class S2Backend(Backend):
    """A store of one kind, and its control plane. There is no registry of runs."""

    def __init__(self, settings: StreamsSettings, kind: str = "sync") -> None:
        assert settings.url is not None
        self.settings = settings
        self.address = parse_s2_address(settings.url.get_secret_value())
        self.authority: Any = S2Authority(self.address, settings)
        self.loop: Any = None
        self.store: Any
        if kind == "asyncio":
            self.loop = self.store = S2LoopStore(self.address, settings)
        else:
            self.store = S2Store(self.address, settings)

    def run_end(self, state: str) -> None:
        """As the registry of runs ends a stream."""
        self.authority.end(SLOT, state)

    def follow_insisting(self) -> list[Any]:
        """Every chunk, live, until the stream ends; resumes as the readers do."""
        found: list[Any] = []
        while True:
            try:
                return self._follow_into(found)
            except StoreUnavailable:
                time.sleep(0.05)

    def _follow_into(self, found: list[Any]) -> list[Any]:
        for page in self.store.follow(SLOT, len(found), idle=60):
            if page.entries:
                found += chunks_of(page.entries, page.head.content_type, len(found))
        return found

    def __exit__(self, *exc_info: object) -> None:
        self.store.shut()
        self.authority.shut()


@pytest.fixture(scope="session")
def s2_lite() -> Iterator[S2Lite]:
    """Shared, in memory: a test must not break it."""
    with S2Lite() as server:
        yield server


@pytest.fixture(scope="session")
def shared_tokens(s2_lite: S2Lite) -> Iterator[TokenServer]:
    with TokenServer(s2_lite) as server:
        yield server


@pytest.fixture
def place(shared_tokens: TokenServer) -> Place:
    """An empty basin."""
    place = Place(shared_tokens)
    place.flush()
    return place


@pytest.fixture
def tokens(place: Place) -> TokenServer:
    """The token server of the empty basin, with its counters at zero."""
    for counter in (place.server.minted, place.server.requests, place.server.refused):
        counter.clear()
    place.server.asked_at.clear()
    place.server.expired.clear()
    place.server.throttled_at.clear()
    return place.server


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two stores."""
    return str(request.param)


@pytest.fixture
def connect(place: Place, kind: str, settings_for: SettingsFor) -> Iterator[Connect]:
    """``connect(**settings)``: a store with connections of its own; closed at the end."""
    with ExitStack() as stack:

        def make(url: str = place.url, **settings: Any) -> S2Backend:
            return stack.enter_context(S2Backend(settings_for(url, **settings), kind))

        yield make


@pytest.fixture
def backend(connect: Connect) -> S2Backend:
    """A store with the default settings."""
    return connect()


@pytest.fixture
def fleet(valkey: ValkeyProcess, tokens: TokenServer) -> Callable[..., Fleet]:
    """``fleet(**settings)``: processes that write to one stream; their runs are on a Valkey."""
    valkey.flush()
    return lambda **options: Fleet(valkey, tokens.url(), **options)
