"""The control plane of workers that hold no account token: a gateway, over HTTP."""

from __future__ import annotations

import http.client
import ipaddress
import logging
import math
import random
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit

from celery_streams.contracts import JSON, Credentials
from celery_streams.credentials.exchange import Answer, Host, Limits
from celery_streams.errors import (
    ConfigurationError,
    RunFinished,
    StoreUnavailable,
    StreamError,
)
from celery_streams.settings import ENV_PREFIX, StreamsSettings
from celery_streams.slots import Slot

logger = logging.getLogger("celery_streams.credentials")

#: Seconds: the first pause between two requests, and the longest of our own choice.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Seconds of a ``Retry-After`` that are honoured: one answer, or a wrong clock, must not keep a
#: process from minting for ever.
_LONGEST_REST = 60.0
#: The part of the slot's lock's lease that one answer may take, retries included.
_PATIENCE = 0.8
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpAuthority:
    """Implements :class:`~celery_streams.contracts.Authority` by asking a gateway.

    ``PUT <authority_url>/v1/stream/runs/<run>/<key>`` with ``Stream-Credentials: append``
    registers the stream and answers with the credentials, in headers. The cache in front of
    it asks once per slot for the whole fleet.

    Answers that may get better (a gateway that is away, ``429``, ``5xx``) are asked for again,
    with jitter and never before a ``Retry-After`` is over, for as long as the lease of the
    slot's lock allows; then it is the flusher who asks again. An answer that comes in drops has
    no longer. Certificates are verified. Thread-safe.

    Raises:
        ConfigurationError: there is no token.
    """

    def __init__(self, settings: StreamsSettings) -> None:
        url, token = settings.authority_url, settings.authority_token
        if url is None or token is None:
            raise ConfigurationError(
                f"credentials from a gateway need its address and a token for it: set "
                f"{ENV_PREFIX}AUTHORITY_URL and {ENV_PREFIX}AUTHORITY_TOKEN"
            )
        parts = urlsplit(url)
        try:
            self._host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigurationError(f"{ENV_PREFIX}AUTHORITY_URL has no proper port") from None
        self._root = parts.path.rstrip("/")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._gateway = Host(self._host, port, tls)
        self._token = token
        self._timeout = settings.socket_timeout
        self._patience = _PATIENCE * settings.lock_lease
        self._rest_until = 0.0
        self._lock = threading.Lock()
        if tls is None and not _is_loopback(self._host):
            logger.warning(
                "%sAUTHORITY_URL is http://, so the token for %s and the credentials it mints "
                "can be read on their way",
                ENV_PREFIX,
                self._host,
            )

    def initialize(self, slot: Slot, *, content_type: str = JSON) -> Credentials:
        """See :meth:`celery_streams.contracts.Authority.initialize`.

        Raises:
            RunFinished: the run has ended.
            ConfigurationError: the gateway refuses the token, or is none, or the stream exists
                with another content type.
            StoreUnavailable: no answer in time, or the gateway wants to be asked later.
        """
        answer = self._ask(
            "PUT", slot, {"stream-credentials": "append", "content-type": content_type}
        )
        headers = answer.headers
        if answer.status == 409:
            if state := headers.get("stream-run-state"):
                raise RunFinished(
                    f"run {slot.owner} has finished ({state}), so stream {slot.key!r} of it cannot "
                    "be opened; to stream beyond a run's end, write to a session",
                    state=state,
                )
            raise ConfigurationError(
                f"stream {slot} exists with another content type than {content_type!r}; write "
                "that to it, or choose another key"
            )
        self._check(answer, slot)
        try:
            expires_at = float(headers["stream-credentials-expires"])
            token, mint_id = headers["stream-credentials"], headers["stream-credentials-id"]
        except (KeyError, ValueError):
            raise self._strange(slot, "answered without credentials") from None
        if not math.isfinite(expires_at) or not token:
            raise self._strange(slot, "answered with credentials that cannot be")
        return Credentials(slot, mint_id, token, expires_at)

    def end(self, slot: Slot, state: str) -> None:
        """Have the gateway end the streams of a run whose end is recorded.

        Raises:
            StoreUnavailable: no answer in time.
        """
        answer = self._ask("POST", slot, {"stream-closed": "true"})
        if answer.status not in (404, 409):
            self._check(answer, slot)

    def revoke(self, slot: Slot) -> int:
        """Not from here: the gateway's own process can.

        Raises:
            ConfigurationError
        """
        raise ConfigurationError(
            f"credentials for {slot} are minted by {self._host}: revoke them where the account's "
            "token is (celery -A proj streams revoke)"
        )

    def _ask(self, method: str, slot: Slot, headers: Mapping[str, str]) -> Answer:
        """The first answer that asking again would not change."""
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            self._rest(slot, deadline)
            try:
                answer = self._once(method, slot, headers, deadline)
            except ssl.SSLCertVerificationError as error:
                raise ConfigurationError(
                    f"the certificate of {self._host} cannot be trusted: {error.verify_message}; "
                    "SSL_CERT_FILE names the file of the authorities that are"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                why = f"{self._host} cannot be asked for credentials for {slot}: {error!r}"
                wait = 0.0
            else:
                if answer.status not in _TRANSIENT:
                    return answer
                why = f"{self._host} answered {answer.status} to {method} {slot}"
                wait = _retry_after(answer.headers.get("retry-after"))
                with self._lock:
                    self._rest_until = max(self._rest_until, time.monotonic() + wait)
            wait = max(wait, pause) * random.uniform(1.0, 1.5)
            if time.monotonic() + wait >= deadline:
                raise StoreUnavailable(why)
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _rest(self, slot: Slot, deadline: float) -> None:
        """Wait until the gateway wants to be asked again."""
        wait = self._rest_until - time.monotonic()
        if wait <= 0:
            return
        if self._rest_until >= deadline:
            raise StoreUnavailable(
                f"{self._host} wants not to be asked for {slot} for {wait:.1f} s"
            )
        time.sleep(wait)

    def _once(self, method: str, slot: Slot, headers: Mapping[str, str], deadline: float) -> Answer:
        path = f"{self._root}/v1/stream/{slot.scope}s/{quote(slot.owner)}/{quote(slot.key)}"
        authorization = f"Bearer {self._token.get_secret_value()}"
        limits = Limits(deadline, self._timeout)
        return self._gateway.ask(method, path, {**headers, "authorization": authorization}, limits)

    def _check(self, answer: Answer, slot: Slot) -> None:
        match answer.status:
            case 200 | 201 | 204:
                return
            case 401 | 403:
                raise ConfigurationError(
                    f"{self._host} refuses this worker's token for {slot} ({answer.status}): set "
                    f"{ENV_PREFIX}AUTHORITY_TOKEN to one with the scopes admin:runs/* and "
                    "admin:sessions/*"
                )
        raise self._strange(slot, f"answered {answer.status}")

    def _strange(self, slot: Slot, what: str) -> StreamError:
        return ConfigurationError(
            f"asked for credentials for {slot}, {self._host} {what}: {ENV_PREFIX}AUTHORITY_URL "
            "must be the address of a celery-streams gateway"
        )


def _retry_after(value: str | None) -> float:
    """Seconds, within reason; a date is relative to this host's clock."""
    return min(_seconds(value), _LONGEST_REST)


def _seconds(value: str | None) -> float:
    if value is None:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
