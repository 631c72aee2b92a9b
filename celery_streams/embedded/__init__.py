"""``embedded://`` URLs: one real Valkey server per directory, shared by the host's processes.

Whoever resolves the URL first starts a supervisor, which starts the server and stops it again
when nobody has been connected for a while. Data survives in the directory's append-only file.
"""

from __future__ import annotations

from celery_streams.embedded.resolving import SCHEME, resolve

__all__ = ["SCHEME", "resolve"]
