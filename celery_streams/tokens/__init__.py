"""Access tokens: who may do what with which streams, signed by who holds the secret."""

from __future__ import annotations

from celery_streams.tokens.jwts import Tokens
from celery_streams.tokens.scopes import UNRESTRICTED, Access, Action, Scope, resource_of, scope

__all__ = ["UNRESTRICTED", "Access", "Action", "Scope", "Tokens", "resource_of", "scope"]
