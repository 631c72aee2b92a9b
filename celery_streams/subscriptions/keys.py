"""The keys of subscriptions: webhooks are signed with one, callbacks' tokens with another.

Both are derived from the deployment's secret, so that all processes have the same without
having to agree. Without a secret it is a random one that is kept in Redis.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from celery_streams.subscriptions.commands import Wake

Use = Literal["callback", "claim"]

#: Seconds a token is good for, if its wake is current that long.
TOKEN_LIFE = 86_400
_MAX_TOKEN = 2048
_HEADER = {"alg": "HS256", "typ": "JWT"}


@dataclass(frozen=True, slots=True)
class _Pair:
    signing: Ed25519PrivateKey
    mac: bytes
    jwk: dict[str, str]


class SubscriptionKeys:
    """The keys derived from ``secrets``: the first one's sign, all are accepted."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._pairs = [_pair(secret) for secret in secrets]

    @property
    def kid(self) -> str:
        """The name of the key that signs webhooks."""
        return self._pairs[0].jwk["kid"]

    def jwks(self) -> bytes:
        """The public keys as a JSON Web Key Set (RFC 7517)."""
        return json.dumps({"keys": [pair.jwk for pair in self._pairs]}).encode()

    def sign(self, body: bytes, now: float | None = None) -> str:
        """The ``Webhook-Signature`` of a body that is sent now (PROTOCOL 7.1)."""
        stamp = str(int(time.time() if now is None else now))
        signature = self._pairs[0].signing.sign(stamp.encode() + b"." + body)
        return f"t={stamp},kid={self.kid},ed25519={_base64(signature)}"

    def token(self, wake: Wake, use: Use) -> str:
        """A token that is good for this one wake of this one subscription."""
        claims = {
            "sub": wake.subscription_id,
            "jti": wake.wake_id,
            "gen": wake.generation,
            "use": use,
            "exp": int(time.time()) + TOKEN_LIFE,
        }
        signed = f"{_base64(_json(_HEADER))}.{_base64(_json(claims))}"
        return f"{signed}.{_base64(_mac(self._pairs[0], signed))}"

    def wake_of(self, token: str, use: Use) -> Wake | None:
        """The wake that ``token`` is good for; ``None``: the token is not ours, or too old."""
        signed, dot, mac = token.rpartition(".")
        if not dot or len(token) > _MAX_TOKEN or not token.isascii():
            return None
        if not any(hmac.compare_digest(_base64(_mac(pair, signed)), mac) for pair in self._pairs):
            return None
        claims = json.loads(_unbase64(signed.partition(".")[2]))
        if claims.get("use") != use or claims["exp"] <= time.time():
            return None
        return Wake(claims["sub"], claims["jti"], claims["gen"])


def _pair(secret: bytes) -> _Pair:
    signing = Ed25519PrivateKey.from_private_bytes(_derived(secret, b"webhook signatures"))
    public = _base64(signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    # RFC 7638: the members that every such key has, in order, without blanks.
    thumbprint = hashlib.sha256(_json({"crv": "Ed25519", "kty": "OKP", "x": public})).digest()
    jwk = {
        "kty": "OKP",
        "crv": "Ed25519",
        "kid": f"ds_{_base64(thumbprint)}",
        "use": "sig",
        "alg": "EdDSA",
        "x": public,
    }
    return _Pair(signing, _derived(secret, b"subscription tokens"), jwk)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"celery-streams " + purpose).derive(secret)


def _mac(pair: _Pair, signed: str) -> bytes:
    return hmac.new(pair.mac, signed.encode(), hashlib.sha256).digest()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
