"""Where chunks and runs live, from the settings: :func:`located`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from celery_streams.contracts import Authority, Store
from celery_streams.credentials.registering import RegisteringAuthority
from celery_streams.credentials.remote import HttpAuthority
from celery_streams.errors import ConfigurationError
from celery_streams.redis.address import Address, celery_url, parse_address
from celery_streams.redis.client import RedisLink
from celery_streams.redis.layout import Layout
from celery_streams.settings import StreamsSettings

AuthorityFactory = Callable[[RedisLink, Layout, StreamsSettings], Authority]
StoreFactory = Callable[[RedisLink, Layout, StreamsSettings], Store]

_S2 = "s2://"
#: Modules that are imported where they are used, because only this store needs them.
_S2_MODULES = ("anyio._backends._asyncio", "s2_sdk", "celery_streams.stores.s2.store")


@dataclass(frozen=True, slots=True)
class BackEnds:
    """Replacements for Redis as the store or the authority: an object, or a factory called once
    per process."""

    authority: Authority | AuthorityFactory | None = None
    store: Store | StoreFactory | None = None


def located(settings: StreamsSettings, conf: Any, given: BackEnds) -> tuple[Address, BackEnds]:
    """Where Redis is, and what else there is: what the user has given goes first.

    ``conf`` is Celery's; ``None`` without an app.

    Raises:
        ConfigurationError: nothing says where the chunks (or, on S2, the runs) are.
    """
    given = _remote(settings, given)
    url = "" if settings.url is None else settings.url.get_secret_value()
    if not url.startswith(_S2):
        if url:
            return parse_address(resolve_url(url)), given
        return parse_address(_celerys(conf, _NO_STORE)), given
    if settings.redis_url is not None:
        address = parse_address(resolve_url(settings.redis_url.get_secret_value()))
    else:
        address = parse_address(_celerys(conf, _NO_REDIS))
    chosen = _on_s2(url, settings)
    return address, BackEnds(given.authority or chosen.authority, given.store or chosen.store)


def import_early(settings: StreamsSettings) -> None:
    """Import what the settings' store needs beyond this package, if that is there."""
    url = "" if settings.url is None else settings.url.get_secret_value()
    if url.startswith(_S2):
        with suppress(ImportError):
            for name in _S2_MODULES:
                import_module(name)


def resolve_url(url: str) -> str:
    """``embedded://`` URLs become the address of the server they stand for."""
    if not url.startswith("embedded://"):
        return url
    from celery_streams.embedded import resolve

    return resolve(url)


_NO_STORE = (
    "no store is configured, and neither Celery's result backend nor its broker is Redis: set "
    "CELERY_STREAMS_URL (or app.conf.streams_url), for example to redis://localhost:6379/0, to "
    "embedded:// for a server of your own, or to s2://basin"
)
_NO_REDIS = (
    "chunks are on S2, but the runs' records, locks and cached credentials need a Redis, and "
    "neither Celery's result backend nor its broker is one: set CELERY_STREAMS_REDIS_URL (or "
    "app.conf.streams_redis_url), for example to redis://localhost:6379/0"
)


def _celerys(conf: Any, otherwise: str) -> str:
    url = None if conf is None else celery_url(conf)
    if url is None:
        raise ConfigurationError(otherwise)
    return url


def _remote(settings: StreamsSettings, given: BackEnds) -> BackEnds:
    if settings.authority_url is None or given.authority is not None:
        return given

    def authority(link: RedisLink, layout: Layout, settings: StreamsSettings) -> Authority:
        return HttpAuthority(settings)

    return replace(given, authority=authority)


def _on_s2(url: str, settings: StreamsSettings) -> BackEnds:
    from celery_streams.stores.s2.address import parse_s2_address
    from celery_streams.stores.s2.authority import S2Authority
    from celery_streams.stores.s2.store import S2Store

    token = settings.s2_access_token
    address = parse_s2_address(url, token="" if token is None else token.get_secret_value())

    def store(link: RedisLink, layout: Layout, settings: StreamsSettings) -> Store:
        return S2Store(address, settings, link.address)

    def authority(link: RedisLink, layout: Layout, settings: StreamsSettings) -> Authority:
        return RegisteringAuthority(link, layout, settings, S2Authority(address, settings))

    return BackEnds(authority, store)
