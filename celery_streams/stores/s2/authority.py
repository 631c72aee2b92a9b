"""The control plane on S2: makes streams, and access tokens that hold for one of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from celery_streams.contracts import JSON, Credentials, Head
from celery_streams.errors import ConfigurationError
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot
from celery_streams.stores.s2.address import S2Address, stream_name, token_prefix
from celery_streams.stores.s2.client import Clients, check_environment, translating
from celery_streams.stores.s2.loop import LoopThread
from celery_streams.stores.s2.opening import Opening, open_stream
from celery_streams.stores.s2.view import View

if TYPE_CHECKING:
    from s2_sdk import S2Stream


class S2Authority:
    """Implements :class:`~celery_streams.contracts.Authority` with the address's token.

    That token must be allowed to create streams, to append and read, and to issue, list and
    revoke access tokens. What it mints may append to and read one stream (reading its own
    stream is how a writer learns what others have written there), and nothing else. Such a
    token names its stream in full: S2's automatic prefix is for tokens that hold for all names
    that begin alike, and would let ``a`` write to ``ab``.

    With ``skip_access_tokens`` (s2-lite has none) credentials hold no secret; the stream is
    made all the same.

    Thread-safe, and usable in a forked child.
    """

    def __init__(self, address: S2Address, settings: StreamsSettings) -> None:
        check_environment()
        if not address.token and not address.skip_access_tokens:
            raise ConfigurationError(
                f"minting access tokens for {address} needs one that may: set S2_ACCESS_TOKEN"
            )
        self._address = address
        self._settings = settings
        self._thread = LoopThread()
        self._clients: tuple[asyncio.AbstractEventLoop, Clients] | None = None

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """Make the stream if there is none, and mint credentials for ``credentials_ttl``.

        Raises:
            ConfigurationError: the stream exists with another content type.
            StoreUnavailable: S2 cannot be reached, or wants to be asked later.
        """
        return self._thread.run(self._initialize(slot, content_type))

    def revoke(self, slot: Slot) -> int:
        """Withdraw every access token for ``slot``; returns how many there were."""
        if self._address.skip_access_tokens:
            return 0
        return self._thread.run(self._revoke(slot))

    def end(self, slot: Slot, state: str) -> Head:
        """End the stream as ``state``, once, with the address's own token.

        For a run's end, which its registry has judged: no fence is asked.

        Raises:
            StreamNotFound: there is no such stream.
            StoreUnavailable: S2 cannot be reached, or wants to be asked later.
        """

        async def run() -> Head:
            def open_stream(token: str) -> S2Stream:
                return self._here().stream(slot, token, retry=False)

            view = View(slot, open_stream, self._settings.max_chunks)
            return await view.close(None, state, self._address.token)

        return self._thread.run(run())

    def shut(self) -> None:
        """Close the connections, and end the event loop."""

        async def run() -> None:
            await self._here().close()

        self._thread.stop(run)

    async def _initialize(self, slot: Slot, content_type: str) -> Credentials:
        known = await open_stream(
            self._here(), self._address.token, self._settings, slot, Opening(content_type)
        )
        if known is not None:
            _check_type(slot, known.state.content_type, content_type)
        return await self._mint(slot, stream_name(self._settings.prefix, slot))

    async def _mint(self, slot: Slot, name: str) -> Credentials:
        from s2_sdk import AccessTokenScope, ExactMatch, Operation

        mint_id = secrets.token_hex(6)
        expires_at = time.time() + self._settings.credentials_ttl
        if self._address.skip_access_tokens:
            return Credentials(slot, mint_id, self._address.token or "none", expires_at)
        operations = [Operation.APPEND, Operation.READ]
        if self._settings.max_chunks:
            operations.append(Operation.TRIM)
        with translating(slot):
            token = (
                await self._here()
                .account(self._address.token)
                .issue_access_token(
                    token_prefix(name) + mint_id,
                    scope=AccessTokenScope(
                        basins=ExactMatch(self._address.basin),
                        streams=ExactMatch(name),
                        ops=operations,
                    ),
                    expires_at=datetime.fromtimestamp(expires_at, UTC),
                )
            )
        return Credentials(slot, mint_id, token, expires_at)

    async def _revoke(self, slot: Slot) -> int:
        from s2_sdk import S2ServerError

        account = self._here().account(self._address.token)
        prefix = token_prefix(stream_name(self._settings.prefix, slot))
        count = 0
        with translating(slot):
            found = [info.id async for info in account.list_all_access_tokens(prefix=prefix)]
            for token_id in found:
                try:
                    await account.revoke_access_token(token_id)
                except S2ServerError as error:
                    if error.status_code != 404:
                        raise
                else:
                    count += 1
        return count

    def _here(self) -> Clients:
        loop = asyncio.get_running_loop()
        if self._clients is None or self._clients[0] is not loop:
            self._clients = (loop, Clients(self._address, self._settings))
        return self._clients[1]


def _check_type(slot: Slot, existing: str, content_type: str) -> None:
    if existing != content_type:
        raise ConfigurationError(
            f"stream {slot} has the content type {existing!r}, so it cannot be opened as "
            f"{content_type!r}; write {existing!r} to it, or choose another key"
        )
