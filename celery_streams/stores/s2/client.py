"""Speaking to S2: clients for many access tokens on few connections, and what errors mean."""

from __future__ import annotations

import copy
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from celery_streams.errors import (
    ConfigurationError,
    CredentialsRejected,
    StoreUnavailable,
    StreamError,
    StreamNotFound,
)
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import S2Address, stream_name

if TYPE_CHECKING:
    from s2_sdk import S2, S2Basin, S2Stream

#: Access tokens whose clients one event loop keeps.
_MOST_CLIENTS = 4096
#: Seconds that S2 is left alone at its request, at most.
_LONGEST_REST = 60.0
_REJECTED = frozenset({401, 403})
_TRANSIENT = frozenset({408, 409, 429, 500, 502, 503, 504})
_MISSING = frozenset({"stream_not_found", "stream_deletion_pending"})
_WRONG_BASIN = frozenset({"basin_not_found", "basin_deletion_pending"})

#: Linux's option that has the kernel acknowledge at once; elsewhere there is none.
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

#: Who replaces sockets, and how to ask whether they have.
_PATCHERS = {"gevent.monkey": "is_module_patched", "eventlet.patcher": "is_monkey_patched"}


class Throttled(StoreUnavailable):
    """S2 asked to be left alone for ``pause`` seconds; nothing was applied."""

    def __init__(self, message: str, pause: float) -> None:
        super().__init__(message)
        self.pause = pause


class Clients:
    """What one event loop uses to reach a basin. Connects at its first request.

    The SDK has one client, with connections of its own, for each access token. Here tokens are
    minted for each stream, and a connection for each would cost a TLS handshake before a run's
    first chunk; so all clients share the connections of the first.
    """

    def __init__(self, address: S2Address, settings: StreamsSettings) -> None:
        self._address = address
        self._settings = settings
        self._first: S2 | None = None
        self._by_token: dict[tuple[str, bool], S2] = {}

    def stream(self, slot: Slot, token: str, *, retry: bool = True) -> S2Stream:
        """A slot's stream. ``retry``: the SDK may repeat requests that failed."""
        stream = self.basin(token, retry=retry).stream(stream_name(self._settings.prefix, slot))
        return cast("S2Stream", stream)

    def basin(self, token: str, *, retry: bool = True) -> S2Basin:
        """The basin, as whoever has ``token`` may use it."""
        return cast("S2Basin", self.account(token, retry=retry).basin(self._address.basin))

    def account(self, token: str, *, retry: bool = True) -> S2:
        """The account, as whoever has ``token`` may use it."""
        client = self._by_token.get((token, retry))
        if client is None:
            while len(self._by_token) >= _MOST_CLIENTS:
                del self._by_token[next(iter(self._by_token))]
            client = self._by_token[token, retry] = self._made(token, retry)
        return client

    def received(self) -> None:
        """Something has been received: have the kernel say so now.

        A server that does not set ``TCP_NODELAY`` (s2-lite) holds a small piece of an answer back
        until the one before it is acknowledged, and kernels put that off, for 40 ms, in case there
        is something to send with it. So chunks would come late wherever answers follow one another.
        """
        pool = getattr(getattr(self._first, "_account_client", None), "_pool", None)
        if _QUICKACK is None or pool is None:
            return
        for connections in pool._hosts.values():
            for each in connections:
                writer = each._conn._writer
                if writer is not None and not writer.is_closing():
                    with suppress(OSError):
                        raw = writer.get_extra_info("socket")
                        raw.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    async def close(self) -> None:
        """Close the connections."""
        first, self._first = self._first, None
        self._by_token.clear()
        if first is not None:
            await first.close()

    def _made(self, token: str, retry: bool) -> S2:
        from s2_sdk import S2, Endpoints, Retry, S2ClientError, Timeout

        if self._first is None:
            given = self._address
            try:
                self._first = S2(
                    "none",
                    endpoints=Endpoints(given.account_endpoint or given.endpoint, given.endpoint)
                    if given.endpoint
                    else None,
                    timeout=Timeout(
                        request=timedelta(seconds=self._settings.socket_timeout),
                        connection=timedelta(seconds=self._settings.connect_timeout),
                    ),
                    retry=Retry(),
                )
                self._first.basin(given.basin)
            except (S2ClientError, ValueError) as error:
                raise ConfigurationError(f"{given} cannot be used as a store: {error}") from None
        # The SDK's only way to share connections. tests/s2 would notice if it went.
        twin = copy.copy(self._first)
        header = ("authorization", f"Bearer {token or 'none'}")
        for name, value in {"_auth_header": header, "_basin_clients": {}}.items():
            setattr(twin, name, value)
        twin._account_client = copy.copy(twin._account_client)
        twin._account_client._headers = dict([header])
        if not retry:
            twin._retry = Retry(max_attempts=1)
        return twin


def check_environment() -> None:
    """See that the SDK is there, and that threads are threads.

    Raises:
        ConfigurationError: says what to install, or which pools work.
    """
    try:
        import s2_sdk  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"the S2 store needs the package s2-sdk ({error}): pip install 'celery-streams[s2]'"
        ) from None
    for library, question in _PATCHERS.items():
        module = sys.modules.get(library)
        if module is not None and getattr(module, question)("socket"):
            raise ConfigurationError(
                f"the S2 store cannot run under {library.partition('.')[0]}, whose patched sockets "
                "an event loop cannot use: start the worker with --pool prefork, threads or solo, "
                "or keep the streams on Redis"
            )


@contextmanager
def translating(slot: Slot) -> Iterator[None]:
    """Raise the SDK's errors as this package's. Nothing secret is in their texts."""
    try:
        yield
    except (StreamError, GeneratorExit):
        raise
    except Exception as error:
        raise translated(error, slot) from error


def translated(error: Exception, slot: Slot) -> Exception:
    """What an error of the SDK means for a stream."""
    from s2_sdk import S2ClientError, S2ServerError

    if isinstance(error, S2ServerError):
        return _answered(error, slot)
    if isinstance(error, S2ClientError):
        cause = error.__cause__
        if cause is None or isinstance(cause, (ValueError, TypeError)):
            return StreamError(f"the S2 client refused a request for {slot}: {error}")
        return StoreUnavailable(f"S2 cannot be reached for {slot}: {cause!r}")
    if isinstance(error, (OSError, TimeoutError)):
        return StoreUnavailable(f"S2 cannot be reached for {slot}: {error!r}")
    return error


def _answered(error: Any, slot: Slot) -> StreamError:
    status, code = error.status_code, error.code
    said = f"S2 answered {status} {code}: {error.message}"
    if status in _REJECTED:
        return CredentialsRejected(f"the store refused the credentials for {slot}: {said}")
    if code in _WRONG_BASIN:
        return ConfigurationError(f"{slot}: {said}; create the basin, or correct the store's URL")
    if code in _MISSING:
        return StreamNotFound(f"there is no stream {slot}, or it has expired")
    if status == 429 and error._retry_after is not None:
        return Throttled(f"{slot}: {said}", min(error._retry_after, _LONGEST_REST))
    if status in _TRANSIENT:
        return StoreUnavailable(f"{slot}: {said}")
    return StreamError(f"S2 refused a request for {slot}: {said}")
