"""Write credentials for workers: ``PUT`` with ``Stream-Credentials``, our protocol extension."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from celery_streams.contracts import JSON
from celery_streams.errors import ConfigurationError, RunFinished
from celery_streams.gateway.auth import Gate
from celery_streams.gateway.problems import Problem
from celery_streams.gateway.replies import Replies, Scope, Send
from celery_streams.gateway.requests import media_type
from celery_streams.gateway.targets import STREAM_ROOT, Target

if TYPE_CHECKING:
    from celery_streams.app import Streams

_ASK = "stream-credentials"


class Minting:
    """Registers a run's or session's stream and answers with the credentials to write to it.

    Whoever holds them can write to the store without the gateway, and end the stream. So the
    token must allow ``admin`` on it: a worker's does, a browser's never should.
    """

    def __init__(self, streams: Streams, gate: Gate, replies: Replies) -> None:
        self._streams = streams
        self._gate = gate
        self._replies = replies

    @staticmethod
    def asked(headers: Mapping[str, str]) -> bool:
        """Whether a ``PUT`` is for credentials."""
        return _ASK in headers

    async def __call__(
        self, scope: Scope, send: Send, target: Target, headers: Mapping[str, str]
    ) -> None:
        """Answer such a ``PUT``.

        Raises:
            Problem: 400 for what is no run's or session's stream, 403, 409 for a run that has
                ended (with ``Stream-Run-State``) or another content type.
        """
        self._gate.require(self._gate.access(scope), "admin", target.resource)
        if not target.awaited or headers[_ASK].strip().lower() != "append":
            raise Problem(
                400,
                "invalid-credentials-request",
                "Stream-Credentials is 'append', for a stream of a run or a session",
            )
        content_type = media_type(headers) or JSON
        authority = self._streams.runtime.authority

        try:
            minted = await asyncio.to_thread(
                authority.initialize, target.slot, content_type=content_type
            )
        except RunFinished as error:
            raise Problem(
                409, "run-finished", str(error), headers={"stream-run-state": error.state}
            ) from None
        except ConfigurationError as error:
            raise Problem(409, "conflict", str(error)) from None
        answer = {
            "content-type": content_type,
            "cache-control": "no-store",
            "location": f"{scope.get('root_path', '')}{STREAM_ROOT}{quote(target.path)}",
            "stream-credentials": minted.token,
            "stream-credentials-id": minted.mint_id,
            "stream-credentials-expires": f"{minted.expires_at:.3f}",
        }
        await self._replies.reply(scope, send, 201, answer)
