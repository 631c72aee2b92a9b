"""Fixtures for every test: real servers, one set per pytest process, started on first use."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from celery_streams.settings import StreamsSettings
from tests.servers import Cluster, RedisProcess, ServerProcess, ValkeyProcess, redis7_missing

SettingsFor = Callable[..., StreamsSettings]


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyProcess]:
    """A Valkey 9; shared, so a test must not break it (``server`` empties it)."""
    with ValkeyProcess() as server:
        yield server


@pytest.fixture(scope="session")
def redis7() -> Iterator[RedisProcess]:
    """The distribution's Redis 7; without it tests skip, or fail in continuous integration."""
    if reason := redis7_missing():
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (CI is set, so this is an error)", pytrace=False)
        pytest.skip(reason)
    with RedisProcess() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three Valkey primaries; shared, so a test must not break it."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(params=["valkey9", "redis7"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    """An empty server of each kind in turn. Only its data may be changed."""
    name = {"valkey9": "valkey", "redis7": "redis7"}[request.param]
    server: ServerProcess = request.getfixturevalue(name)
    server.flush()
    return server


@pytest.fixture
def settings_for(monkeypatch: pytest.MonkeyPatch) -> SettingsFor:
    """``settings_for(url, **overrides)``: settings that no environment variable changes."""
    for name in [name for name in os.environ if name.startswith("CELERY_STREAMS_")]:
        if name != "CELERY_STREAMS_SOAK":
            monkeypatch.delenv(name)

    def make(url: str, **overrides: Any) -> StreamsSettings:
        return StreamsSettings(**{"url": url, "secret": "test secret", **overrides})

    return make


@pytest.fixture
def times() -> Callable[[int, int], int]:
    """``times(few, many)``: how often to inject a fault; ``many`` under ``make soak``."""
    return lambda few, many: many if os.environ.get("CELERY_STREAMS_SOAK") else few


# -- tests that must have the machine to themselves -------------------------------------------

_LOCKS = "TEST_RUN_LOCKS"


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of this run's locks; pytest-xdist's workers inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ[_LOCKS] = tempfile.mkdtemp(prefix="test-run-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it at the end of the run."""
    if not hasattr(config, "workerinput") and (path := os.environ.pop(_LOCKS, None)):
        shutil.rmtree(path, ignore_errors=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test marked ``alone`` wait until the other pytest processes are idle, and they it.

    Whoever comes passes a turnstile first, so that one who waits is not overtaken for ever.
    """
    alone = item.get_closest_marker("alone") is not None
    with (
        _locked("turnstile", fcntl.LOCK_EX) as release,
        _locked("running", fcntl.LOCK_EX if alone else fcntl.LOCK_SH),
    ):
        release()
        return (yield)


@contextmanager
def _locked(name: str, how: int) -> Iterator[Callable[[], None]]:
    with Path(os.environ[_LOCKS], name).open("ab") as file:
        fcntl.flock(file, how)
        try:
            yield lambda: fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold a copy of the file
