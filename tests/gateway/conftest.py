"""Tests that are coroutines run on asyncio (anyio's pytest plugin, which Starlette brings)."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
