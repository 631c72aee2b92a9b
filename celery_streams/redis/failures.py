"""Turn redis-py's exceptions into ours: what happened, where, and what to do."""

from __future__ import annotations

import redis.exceptions as rx

from celery_streams.errors import ConfigurationError, StoreUnavailable, StreamError

#: What redis-py raises. Trouble with a cluster as a whole is not one of its ``RedisError``.
REDIS_ERRORS = (rx.RedisError, rx.RedisClusterException, OSError)

#: Fragments of the replies by which a server says that it lacks a command we need.
_TOO_OLD = ("unknown command", "unknown redis command", "unknown script flag", "unknown subcommand")

#: Fragments of what a script says whose user may not do what it does.
_NOT_PERMITTED = ("acl failure in script", "the user executing the script", "noperm")

#: Starts of replies that another moment, or another node, may not give.
_PASSING = (
    "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "UNBLOCKED", "NOREPLICAS", "MOVED", "ASK",
    "MISCONF", "BUSY",
)  # fmt: skip


def translated(error: Exception, where: object) -> Exception:
    """The :class:`StreamError` for a redis-py ``error``; other exceptions come back as they are.

    :class:`StoreUnavailable` means that trying again may help, :class:`ConfigurationError`
    that somebody has to change something first.
    """
    if isinstance(error, rx.RedisClusterException):
        return _cluster_unusable(error, where)
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
            return _not_permitted(text, where)
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
        case rx.MovedError() | rx.AskError() | rx.TryAgainError() | rx.ClusterDownError():
            return StoreUnavailable(f"the cluster at {where} is changing ({text or 'no node'})")
        case rx.ConnectionError() | rx.ClusterError():
            return StoreUnavailable(f"cannot reach Redis at {where}: {text}")
    return _by_text(text, where)


def _by_text(text: str, where: object) -> StreamError:
    """For error replies that redis-py has no class for, or that a script passed on."""
    lowered = text.lower()
    if any(fragment in lowered for fragment in _TOO_OLD):
        return ConfigurationError(
            f"Redis at {where} is too old or has a command disabled ({text}); "
            "celery-streams needs Valkey, or Redis 7.0 and newer"
        )
    if any(fragment in lowered for fragment in _NOT_PERMITTED):
        return _not_permitted(text, where)
    for code, kind in (("OOM", rx.OutOfMemoryError), ("READONLY", rx.ReadOnlyError)):
        if text.startswith((code, "-" + code)) or f"{code} " in text:
            error = translated(kind(text), where)
            assert isinstance(error, StreamError)
            return error
    if text.startswith(_PASSING):
        return StoreUnavailable(f"Redis at {where} cannot take commands now: {text}")
    return StreamError(f"Redis at {where} answered with an error: {text}")


def _not_permitted(text: str, where: object) -> ConfigurationError:
    return ConfigurationError(
        f"the Redis user at {where} lacks a permission ({text}); it needs the keys and "
        "channels under the configured prefix, and @read @write @scripting @pubsub"
    )


def _cluster_unusable(error: rx.RedisClusterException, where: object) -> Exception:
    """No node of a cluster could be asked for the others: the reason is what matters."""
    text, cause = str(error), error.__cause__
    if "not enabled" in text:
        return ConfigurationError(
            f"Redis at {where} is not a cluster; put redis:// (or rediss://) in CELERY_STREAMS_URL"
        )
    if isinstance(cause, rx.RedisError):
        return translated(cause, where)
    return StoreUnavailable(f"cannot reach the cluster at {where}: {text}")
