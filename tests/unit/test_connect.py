"""Clients leave nothing open behind them."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from celery_streams.errors import ConfigurationError
from celery_streams.redis.address import parse_address
from celery_streams.redis.calls import Call
from celery_streams.redis.client import AsyncRedisLink
from tests.conftest import SettingsFor
from tests.servers import ValkeyProcess


@pytest.mark.parametrize("wrong", ["not a cluster", "password"])
def test_an_asyncio_cluster_client_that_never_came_to_be_is_closed(
    settings_for: SettingsFor, wrong: str
) -> None:
    """redis-py closes only what was initialized; looking for the nodes again opens more."""
    with ValkeyProcess(requirepass="right") as server:
        password = "wrong" if wrong == "password" else "right"
        url = server.url_for(password=password).replace("redis", "redis+cluster", 1)

        async def fail() -> None:
            link = AsyncRedisLink(parse_address(url), settings_for(url))
            with pytest.raises(ConfigurationError, match=wrong):
                await link.call(Call("PING", ("key",)))
            await link.refresh()
            await link.close()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            asyncio.run(fail())
            gc.collect()
        assert [warning for warning in caught if "redis" in warning.filename] == []
        assert [str(each.message) for each in caught if "unclosed" in str(each.message)] == []
        mine = [each for each in server.client().client_list() if each["name"] == "celery-streams"]
        assert mine == []
