"""Who may write: minting credentials for a slot, and sharing them with the whole fleet."""

from __future__ import annotations

from celery_streams.credentials.authority import RedisAuthority
from celery_streams.credentials.cache import CredentialCache

__all__ = ["CredentialCache", "RedisAuthority"]
