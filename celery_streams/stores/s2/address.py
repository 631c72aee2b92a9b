"""Where S2 is, and how its streams are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from celery_streams.errors import ConfigurationError
from celery_streams.slots import Slot

#: Longest name of an S2 stream, in bytes.
MAX_STREAM_NAME = 512

#: The environment variable of S2's own tools.
_TOKEN = "S2_ACCESS_TOKEN"
_KNOWN = frozenset({"endpoint", "account_endpoint", "skip_access_tokens"})
_TRUE, _FALSE = frozenset({"", "1", "true", "yes"}), frozenset({"0", "false", "no"})


@dataclass(frozen=True, slots=True)
class S2Address:
    """A basin, and how to reach it.

    ``endpoint`` is where the basin's streams are served and ``account_endpoint`` where access
    tokens are minted; empty: S2's cloud. ``token`` is what this process itself may do: reading
    for a gateway, everything for a control plane; a worker that only writes needs none.
    ``skip_access_tokens`` is for a server that has none (s2-lite): nothing is minted.
    """

    basin: str
    endpoint: str = ""
    account_endpoint: str = ""
    token: str = field(default="", repr=False)
    skip_access_tokens: bool = False

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s2://{self.basin}{at}"


def parse_s2_address(
    url: str, environ: Mapping[str, str] = os.environ, *, token: str = ""
) -> S2Address:
    """Parse ``s2://basin?endpoint=...&account_endpoint=...&skip_access_tokens``.

    The token is the URL's user name (``s2://token@basin``), else ``token`` (the setting), else
    the environment's ``S2_ACCESS_TOKEN``.

    Raises:
        ConfigurationError: the URL says nothing this package understands; never shows a token.
    """
    parts = urlsplit(url)
    shown = f"s2://{parts.hostname or ''}"
    given = parse_qs(parts.query, keep_blank_values=True)
    options = {name: values[-1] for name, values in given.items()}
    if parts.scheme != "s2" or not parts.hostname or parts.path.strip("/"):
        raise ConfigurationError(
            f"the store URL {shown!r} cannot be used; an S2 store's is s2://basin or "
            "s2://basin?endpoint=https://..."
        )
    if unknown := sorted(options.keys() - _KNOWN):
        raise ConfigurationError(
            f"the store URL {shown!r} has the unknown option {unknown[0]!r}; there are "
            f"{', '.join(sorted(_KNOWN))}"
        )
    skip = options.get("skip_access_tokens", "0").lower()
    if skip not in _TRUE | _FALSE:
        raise ConfigurationError(
            f"skip_access_tokens of the store URL {shown!r} must be 0 or 1, not {skip!r}"
        )
    endpoint = options.get("endpoint", "").rstrip("/")
    return S2Address(
        basin=parts.hostname,
        endpoint=endpoint,
        account_endpoint=options.get("account_endpoint", "").rstrip("/") or endpoint,
        token=unquote(parts.username or "") or token or environ.get(_TOKEN, ""),
        skip_access_tokens=skip in _TRUE,
    )


def stream_name(prefix: str, slot: Slot) -> str:
    """The S2 stream that holds a slot: ``<prefix>/runs/<id>/<key>`` and the like."""
    name = f"{prefix}/{slot.scope}s/{slot.owner}/{slot.key}"
    if len(name.encode()) <= MAX_STREAM_NAME:
        return name
    # No name may contain a slash, so nothing else can be called like this.
    return f"{prefix}/{slot.scope}s//{hashlib.sha256(name.encode()).hexdigest()}"


def token_prefix(name: str) -> str:
    """How the ids of all access tokens for one stream begin (ids are limited to 96 bytes)."""
    return f"celery-streams-{hashlib.sha256(name.encode()).hexdigest()[:32]}-"
