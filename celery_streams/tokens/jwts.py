"""Mint and verify: :class:`Tokens`, the only place where PyJWT is called."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

from celery_streams.errors import ConfigurationError, TokenRejected
from celery_streams.settings import ENV_PREFIX, StreamsSettings
from celery_streams.tokens.keys import Key, accepted_keys, signing_key
from celery_streams.tokens.scopes import Access, Scope, granted

#: Scopes of one token.
MAX_SCOPES = 64
#: Longest token, bytes: it must fit into a URL beside a stream's path.
MAX_TOKEN_BYTES = 6 * 1024
#: Longest life of a token that is minted here, seconds: a year.
MAX_TTL = 366 * 86400.0
#: Seconds that clocks may disagree.
LEEWAY = 10.0

#: Verified tokens that one process remembers.
_REMEMBERED = 4096
_EXPIRED = "the token has expired; get a new one"


class Tokens:
    """JSON Web Tokens (RFC 7519) for the gateway, by the keys in ``settings``.

    Raises:
        ConfigurationError: PyJWT is not installed, or a key cannot be used.
    """

    def __init__(self, settings: StreamsSettings) -> None:
        try:
            import jwt  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                'access tokens need PyJWT: pip install "celery-streams[gateway]"'
            ) from None
        self._settings = settings
        self._audience = settings.token_audience
        self._signing = signing_key(settings)
        # Checking a signature costs more than all the rest of a small request, and clients send
        # the same token again and again. Refusals are exceptions, which are not remembered.
        self._remembered = lru_cache(_REMEMBERED)(self._verified)

    @property
    def can_verify(self) -> bool:
        """Whether there is any key to check a token with. Raises :class:`ConfigurationError`."""
        return bool(self._accepted)

    @cached_property
    def _accepted(self) -> tuple[Key, ...]:
        return accepted_keys(self._settings)  # reads files, which minting does not need

    @property
    def can_mint(self) -> bool:
        """Whether there is a secret to sign with."""
        return self._signing is not None

    def mint(
        self,
        scopes: Iterable[str],
        ttl: float = 3600.0,
        *,
        subject: str | None = None,
        token_id: str | None = None,
    ) -> str:
        """A token that allows ``scopes`` for ``ttl`` seconds.

        Args:
            scopes: for example ``["read:runs/" + run_id]``; the module ``scopes`` has the rest.
            ttl: seconds from now.
            subject: for whom it is (``sub``); not interpreted.
            token_id: of the token that it stands for, and whose limits it shares.

        Raises:
            ConfigurationError: there is no secret, a scope is malformed, there are none or too
                many, or the time is out of range.
        """
        import jwt

        if self._signing is None:
            raise ConfigurationError(
                f"minting tokens needs a secret: set {ENV_PREFIX}SECRET (or app.conf."
                "streams_secret), the same as the gateway's"
            )
        if not (math.isfinite(ttl) and 0 < ttl <= MAX_TTL):
            raise ConfigurationError(
                f"a token lives for more than 0 and at most {MAX_TTL:.0f} seconds, not {ttl}"
            )
        now = time.time()
        claims: dict[str, Any] = {
            "iat": int(now),
            "exp": math.ceil(now + ttl),
            "aud": self._audience,
            "jti": token_id or secrets.token_urlsafe(12),
            "scope": _claim(scopes),
        }
        if subject is not None:
            claims["sub"] = subject
        key = self._signing
        assert isinstance(key.material, bytes)
        token = jwt.encode(claims, key.material, algorithm=key.algorithm, headers={"kid": key.kid})
        if len(token) > MAX_TOKEN_BYTES:
            raise ConfigurationError(
                f"the token would have {len(token)} bytes; the limit is {MAX_TOKEN_BYTES}. Use "
                "fewer scopes, or wider ones"
            )
        return token

    def verify(self, token: str) -> Access:
        """What ``token`` allows.

        Raises:
            TokenRejected: nothing, and why; the message never contains any part of it.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenRejected(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        access = self._remembered(token)
        if access.expires_at <= time.time() - LEEWAY:
            raise TokenRejected(_EXPIRED)
        return access

    def _verified(self, token: str) -> Access:
        import jwt

        try:
            return _access(self._claims(token))
        except jwt.ExpiredSignatureError:
            raise TokenRejected(_EXPIRED) from None
        except jwt.ImmatureSignatureError:
            raise TokenRejected("the token is not valid yet; compare the clocks") from None
        except jwt.InvalidAudienceError:
            raise TokenRejected(f"the token is not meant for {self._audience!r}") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRejected(f"the token has no claim {error.claim!r}") from None
        except jwt.InvalidSignatureError:
            raise TokenRejected("the token is signed by nobody who is trusted here") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            # PyJWT leaves to us what else can be wrong with JSON written by an attacker.
            raise TokenRejected("the token is malformed") from None

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims, once a key that is trusted has signed them and they hold today."""
        import jwt

        header = jwt.get_unverified_header(token)
        if "crit" in header or "b64" in header:  # RFC 7515 4.1.11: what is not understood
            raise jwt.InvalidTokenError
        for key in self._candidates(header):
            try:
                return jwt.decode(
                    token,
                    key.material,
                    algorithms=[key.algorithm],
                    audience=self._audience,
                    leeway=LEEWAY,
                    options={"require": ["exp", "aud"]},
                )
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidSignatureError

    def _candidates(self, header: dict[str, Any]) -> list[Key]:
        """The keys for the token's algorithm; the one it points to comes first."""
        algorithm, kid = header.get("alg"), header.get("kid")
        keys = [key for key in self._accepted if key.algorithm == algorithm]
        return sorted(keys, key=lambda key: kid is None or key.kid != kid)


def _claim(scopes: Iterable[str]) -> str:
    if isinstance(scopes, str):
        raise ConfigurationError("scopes is a list of strings; write [scope] for one")
    unique = list(dict.fromkeys(str(Scope.parse(text)) for text in scopes))
    if not 0 < len(unique) <= MAX_SCOPES:
        raise ConfigurationError(f"a token has 1 to {MAX_SCOPES} scopes, not {len(unique)}")
    return " ".join(unique)


def _access(claims: dict[str, Any]) -> Access:
    subject, token_id = claims.get("sub"), claims.get("jti")
    if not isinstance(token_id, str) or not token_id:
        # Of the claims, not of the text: an ECDSA signature can be written in two ways.
        content = json.dumps(claims, sort_keys=True).encode()
        token_id = "sha256:" + hashlib.sha256(content).hexdigest()[:32]
    return Access(
        scopes=granted(claims.get("scope")),
        subject=subject if isinstance(subject, str) else None,
        token_id=token_id,
        expires_at=float(claims["exp"]),
    )
