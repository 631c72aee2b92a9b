"""Fixtures of the credentials tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.credentials.fleet import Member
from tests.servers import ServerProcess

Join = Callable[..., Member]


@pytest.fixture
def join(server: ServerProcess) -> Iterator[Join]:
    """``join(**options)``: another member of the fleet on ``server``; closed at the end."""
    with ExitStack() as stack:

        def make(**options: Any) -> Member:
            return stack.enter_context(Member(server.url, **options))

        yield make
