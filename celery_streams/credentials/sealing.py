"""Encrypt the credentials a fleet shares through Redis, and recognise what is not ours."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from celery_streams.contracts import Credentials
from celery_streams.redis.address import Address
from celery_streams.settings import StreamsSettings
from celery_streams.slots import Slot

logger = logging.getLogger("celery_streams.credentials")

_VERSION = b"\x01"
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Minted:
    """Credentials, and when they were minted (Unix seconds): together, how old they are."""

    credentials: Credentials
    minted_at: float


class Sealer:
    """Seals with AES-256-GCM under a key derived (HKDF) from the deployment's secret.

    The slot is authenticated along with the content: an entry copied under another slot's
    Redis key does not open as that slot's.
    """

    def __init__(self, secret: bytes) -> None:
        derivation = HKDF(SHA256(), 32, salt=None, info=b"celery-streams cached credentials")
        self._cipher = AESGCM(derivation.derive(secret))
        self._warned = False
        self._lock = threading.Lock()

    def seal(self, minted: Minted) -> bytes:
        """What goes to Redis; different each time, so that compare-and-delete can tell two
        entries apart even if an authority hands out equal credentials."""
        credentials = minted.credentials
        content = json.dumps(
            [credentials.mint_id, credentials.token, credentials.expires_at, minted.minted_at]
        )
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, content.encode(), _bound_to(credentials.slot))
        return _VERSION + nonce + sealed

    def open(self, slot: Slot, sealed: bytes) -> Minted | None:
        """The credentials in ``sealed``, or ``None`` if they cannot be read as ``slot``'s.

        That is a miss, never an error: during a change of secret, two halves of a fleet see
        each other's entries. It is logged once.
        """
        try:
            if sealed[:1] != _VERSION:
                raise ValueError("unknown format")
            nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
            content = self._cipher.decrypt(nonce, body, _bound_to(slot))
            mint_id, token, expires_at, minted_at = json.loads(content)
            return Minted(
                Credentials(slot, str(mint_id), str(token), float(expires_at)), float(minted_at)
            )
        except (InvalidTag, ValueError, TypeError) as error:
            self._warn_once(slot, error)
            return None

    def after_fork(self) -> None:
        """In the child: a lock that a thread of the parent held is nobody's."""
        self._lock = threading.Lock()

    def _warn_once(self, slot: Slot, error: Exception) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        logger.warning(
            "cached credentials of stream %s cannot be decrypted (%s) and are minted anew; give "
            "every process the same CELERY_STREAMS_SECRET (logged once per process)",
            slot,
            type(error).__name__,
        )


def secret_of(settings: StreamsSettings, address: Address) -> bytes:
    """The secret to derive keys from: the configured one, else what the address is opened with.

    Only its user name and password: hosts of one fleet may know one server by several names.
    """
    if settings.secret is not None:
        return b"secret\0" + settings.secret.get_secret_value().encode()
    return b"login\0" + f"{address.username}\0{address.password}".encode()


def _bound_to(slot: Slot) -> bytes:
    return str(slot).encode()
