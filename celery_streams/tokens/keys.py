"""The keys that tokens are checked with, each with the one algorithm it may be used for.

The algorithm belongs to the key, never to the token: a token that names another one is not
checked at all. That is what keeps a public key from being taken for a shared secret
(RFC 8725, sections 2.1 and 3.1).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import SecretStr

from celery_streams.errors import ConfigurationError
from celery_streams.settings import ENV_PREFIX, StreamsSettings

logger = logging.getLogger("celery_streams.tokens")

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

_SETTING = f"{ENV_PREFIX}TOKEN_PUBLIC_KEYS"
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
_LEAST_RSA_BITS = 2048
_LEAST_SECRET_BYTES = 16
#: Key types and curves of RFC 7517 and 8037 that we have an algorithm for.
_JWK_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, its algorithm, and the name (``kid``) by which a token may point to it."""

    algorithm: str
    kid: str | None
    material: bytes | PublicKey = field(repr=False)


def signing_key(settings: StreamsSettings) -> Key | None:
    """The key that tokens are minted with; ``None`` without ``secret``."""
    return None if settings.secret is None else _derived(settings.secret, "SECRET")


def accepted_keys(settings: StreamsSettings) -> tuple[Key, ...]:
    """All keys whose signatures count.

    Raises:
        ConfigurationError: a key cannot be read, or is one that must not be used.
    """
    own = signing_key(settings)
    keys = [] if own is None else [own]
    keys += [_derived(secret, "TOKEN_SECRETS") for secret in settings.token_secrets]
    for place, text in enumerate(settings.token_public_keys, start=1):
        keys += _public_keys(text, f"{_SETTING}, entry {place}")
    return tuple(keys)


@lru_cache(maxsize=32)  # also: warn once
def _derived(secret: SecretStr, name: str) -> Key:
    """An HS256 key. With a label of its own: no token is worth anything to the cached
    credentials' cipher, nor the other way round."""
    value = secret.get_secret_value().encode()
    if not value.strip():
        raise ConfigurationError(
            f"{ENV_PREFIX}{name} is empty: everybody could sign tokens. Set it to 32 random bytes, "
            "or do not set it"
        )
    if len(value) < _LEAST_SECRET_BYTES:
        logger.warning(
            "%s%s has only %d bytes: who has one token can try secrets until one fits; set it to "
            "32 random bytes", ENV_PREFIX, name, len(value),
        )  # fmt: skip
    derivation = HKDF(SHA256(), 32, salt=None, info=b"celery-streams access tokens")
    key = derivation.derive(b"secret\0" + value)
    return Key("HS256", hashlib.sha256(b"kid\0" + key).hexdigest()[:12], key)


def _public_keys(text: str, where: str) -> Iterator[Key]:
    if "-----BEGIN" not in text:
        try:
            text = Path(text).read_text()
        except (OSError, ValueError) as error:  # not shown: it may be a secret, misplaced
            raise ConfigurationError(
                f"{where} is no PEM text, and cannot be read as a file: {type(error).__name__}"
            ) from None
    if text.lstrip().startswith("{"):
        keys = list(_key_set(text, where))
    else:
        keys = [_from_pem(match[0], match[1], where) for match in _PEM.finditer(text)]
    if not keys:
        raise ConfigurationError(
            f"{where} holds no key that can be used: RSA (RS256), P-256 (ES256) and Ed25519 "
            "(EdDSA) can, as PEM or as a JSON Web Key Set"
        )
    yield from keys


def _from_pem(pem: str, label: str, where: str) -> Key:
    if "PRIVATE" in label:
        raise ConfigurationError(f"{where} is a private key; give its public key, keep this one")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{where} is no PEM public key ({label})") from None
    return Key(_algorithm(key, where), None, key)  # type: ignore[arg-type]


def _key_set(text: str, where: str) -> Iterator[Key]:
    """The usable keys of a JSON Web Key Set (RFC 7517); it may hold others for other uses."""
    import jwt

    try:
        entries = json.loads(text)["keys"]
    except (ValueError, KeyError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise ConfigurationError(f"{where} is no JSON Web Key Set: it has no list of keys")
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        if entry.get("kty") == "oct" or "d" in entry:
            raise ConfigurationError(f"{where} holds a secret or private key; give public keys")
        algorithm = _jwk_algorithm(entry)
        if algorithm is None or entry.get("alg", algorithm) not in (algorithm, "Ed25519"):
            continue
        try:
            key = jwt.PyJWK(entry, algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            raise ConfigurationError(f"{where} holds a key that cannot be read") from None
        kid = entry.get("kid")
        yield Key(_algorithm(key, where), kid if isinstance(kid, str) else None, key)


def _jwk_algorithm(entry: dict[str, Any]) -> str | None:
    kind, curve = entry.get("kty"), entry.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    return _JWK_ALGORITHMS.get((kind, curve))


def _algorithm(key: object, where: str) -> str:
    if isinstance(key, RSAPublicKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise ConfigurationError(
                f"{where} is an RSA key of {key.key_size} bits; use {_LEAST_RSA_BITS} or more"
            )
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ConfigurationError(f"{where} is of a kind that is not supported: use RSA, P-256, Ed25519")
