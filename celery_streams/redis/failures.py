"""Turn redis-py's exceptions into ours: what happened, where, and what to do."""

from __future__ import annotations

import redis.exceptions as rx

from celery_streams.errors import ConfigurationError, StoreUnavailable, StreamError

#: Fragments of the replies by which a server says that it lacks a command we need.
_TOO_OLD = ("unknown command", "unknown redis command", "unknown script flag", "unknown subcommand")


def translated(error: Exception, where: object) -> Exception:
    """The :class:`StreamError` for a redis-py ``error``; other exceptions come back as they are.

    :class:`StoreUnavailable` means that trying again may help, :class:`ConfigurationError`
    that somebody has to change something first.
    """
    if not isinstance(error, rx.RedisError):
        if isinstance(error, OSError) and not isinstance(error, StreamError):
            return StoreUnavailable(f"cannot reach Redis at {where}: {error}")
        return error
    text = str(error)
    match error:
        case rx.AuthenticationError() | rx.AuthorizationError():
            return ConfigurationError(
                f"Redis at {where} refused the user name or password ({text}); "
                "check CELERY_STREAMS_URL"
            )
        case rx.NoPermissionError():
            return ConfigurationError(
                f"the Redis user at {where} lacks a permission ({text}); it needs the keys and "
                "channels under the configured prefix, and @read @write @scripting @pubsub"
            )
        case rx.ReadOnlyError():
            return StoreUnavailable(
                f"Redis at {where} is a read-only replica; point CELERY_STREAMS_URL at the primary"
            )
        case rx.OutOfMemoryError():
            return StoreUnavailable(
                f"Redis at {where} is out of memory ({text}); raise maxmemory, or lower the "
                "streams' retention or max_chunks"
            )
        case rx.BusyLoadingError():
            return StoreUnavailable(f"Redis at {where} is still loading its data")
        case rx.TimeoutError():
            return StoreUnavailable(f"Redis at {where} did not answer in time ({text})")
        case rx.ConnectionError() | rx.ClusterError() | rx.RedisClusterException():
            return StoreUnavailable(f"cannot reach Redis at {where}: {text}")
    if any(fragment in text.lower() for fragment in _TOO_OLD):
        return ConfigurationError(
            f"Redis at {where} is too old or has a command disabled ({text}); "
            "celery-streams needs Valkey, or Redis 7.0 and newer"
        )
    if text.startswith(("OOM", "-OOM")) or "OOM command" in text:
        return translated(rx.OutOfMemoryError(text), where)
    if text.startswith(("READONLY", "-READONLY")) or "READONLY" in text:
        return translated(rx.ReadOnlyError(text), where)
    if text.startswith(("CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "UNBLOCKED", "NOREPLICAS")):
        return StoreUnavailable(f"Redis at {where} cannot take commands now: {text}")
    return StreamError(f"Redis at {where} answered with an error: {text}")
