"""The checks of ``celery -A proj streams doctor``: what is so, and what to do about it."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis
import redis.exceptions as rx
from celery import Celery

from celery_streams.app import Streams
from celery_streams.errors import StreamError
from celery_streams.redis.client import Call, RedisLink
from celery_streams.redis.failures import translated
from celery_streams.redis.scripts import load_script
from celery_streams.settings import CONF_PREFIX, ENV_PREFIX
from celery_streams.slots import Slot

Level = Literal["ok", "warn", "fail"]

_SMALL_MEMORY = 64 * 1024 * 1024
_FULL = 0.8
_MOST_SKEW = 1.0  #: seconds
_SLOW = 0.005  #: seconds a round trip
_PINGS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; ``advice`` says what to do about it."""

    level: Level
    what: str
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One server (a cluster has several) and what its INFO says."""

    client: redis.Redis
    info: dict[str, Any]

    @property
    def label(self) -> str:
        """Its port tells one node of a cluster from another."""
        return f" (node on port {self.info.get('tcp_port', '?')})"


def examine(streams: Streams, app: Celery) -> Iterator[Finding]:
    """Run every check, in the order in which later ones need earlier ones."""
    try:
        settings = streams.settings
    except StreamError as error:
        yield Finding("fail", "settings", str(error))
        return
    yield Finding("ok", "settings", f"loaded; keys start with {settings.prefix!r}")
    try:
        link = streams.runtime.link
        yield Finding("ok", "address", f"{streams.runtime.where}, from {_origin(streams, app)}")
        nodes = _nodes(link)
    except (StreamError, rx.RedisError, OSError) as error:
        told = translated(error, "the configured address") if _raw(error) else error
        yield Finding("fail", "connection", str(told))
        return
    yield _secret(streams)
    failed = False
    for node in nodes:
        suffix = node.label if len(nodes) > 1 else ""
        for check in (_server, _role, _memory, _persistence, _clock, _latency):
            finding = _safely(check, node)
            failed |= finding.level == "fail"
            yield Finding(finding.level, finding.what, finding.detail + suffix, finding.advice)
    for examine_link in (_sharded_channels, _scripts, _compare_and_delete):
        finding = _safely(examine_link, streams)
        failed |= finding.level == "fail"
        yield finding
    if failed:  # it would wait for what cannot come
        yield Finding("fail", "write and read", "not tried, because of what failed above")
    else:
        yield _safely(_write_and_read, streams)


def _raw(error: Exception) -> bool:
    return not isinstance(error, StreamError)


def _safely(check: Callable[[Any], Finding], subject: Any) -> Finding:
    try:
        return check(subject)
    except Exception as error:
        told = translated(error, "the server")
        what = check.__name__.strip("_").replace("_", " ")
        if isinstance(error, rx.NoPermissionError):
            return Finding("warn", what, "not checked: the user may not ask the server for it")
        return Finding("fail", what, " ".join(str(told).split()))


def _origin(streams: Streams, app: Celery) -> str:
    if streams.settings.url is None:
        backend = str(app.conf.result_backend or "").startswith(("redis", "rediss"))
        return f"Celery's {'result backend' if backend else 'broker'} (no URL of its own is set)"
    url = streams.settings.url.get_secret_value()
    if os.environ.get(f"{ENV_PREFIX}URL") == url:
        return f"the environment variable {ENV_PREFIX}URL"
    if app.conf.get(f"{CONF_PREFIX}url") == url:
        return f"app.conf.{CONF_PREFIX}url"
    return "the argument of Streams(url=...)"


def _nodes(link: RedisLink) -> list[Node]:
    client = link.client
    if isinstance(client, redis.Redis):
        clients = [client]
    else:
        clients = [client.get_redis_connection(node) for node in client.get_primaries()]
    return [Node(each, _info(each)) for each in clients]


def _info(client: redis.Redis) -> dict[str, Any]:
    client.ping()
    try:
        return client.info("everything")
    except rx.NoPermissionError:
        return {}


def _secret(streams: Streams) -> Finding:
    if streams.settings.secret is not None:
        return Finding("ok", "secret", "set; cached credentials are encrypted with it")
    if streams.runtime.link.address.password:
        return Finding(
            "ok",
            "secret",
            "not set; derived from the password of the address",
            f"set {ENV_PREFIX}SECRET to be able to change that password without a cold cache",
        )
    return Finding(
        "warn",
        "secret",
        "neither a secret nor a password: whoever reads Redis can decrypt cached credentials",
        f"set {ENV_PREFIX}SECRET to 32 random bytes, the same for all processes",
    )


def _server(node: Node) -> Finding:
    info = node.info
    if version := info.get("valkey_version"):
        return Finding("ok", "server", f"Valkey {version}")
    version = str(info.get("redis_version", ""))
    if not version:
        return Finding("warn", "server", "it does not tell its version (INFO is not allowed)")
    if int(version.partition(".")[0]) < 7:
        return Finding(
            "fail", "server", f"Redis {version} is too old", "use Valkey, or Redis 7.0 and newer"
        )
    return Finding("ok", "server", f"Redis {version}")


def _role(node: Node) -> Finding:
    role = node.info.get("role")
    if role is None:
        return Finding("warn", "role", "not checked: INFO is not allowed")
    if role == "slave":
        return Finding(
            "fail", "role", "a read-only replica", f"point {ENV_PREFIX}URL at the primary"
        )
    replicas = node.info.get("connected_slaves", 0)
    return Finding("ok", "role", f"primary, {replicas} replicas connected")


def _memory(node: Node) -> Finding:
    if "maxmemory_policy" not in node.info:
        return Finding("warn", "memory", "not checked: INFO is not allowed")
    policy = str(node.info["maxmemory_policy"])
    limit = int(node.info.get("maxmemory", 0) or 0)
    used = int(node.info.get("used_memory", 0) or 0)
    shown = f"{used / 2**20:.0f} MiB used, limit {limit / 2**20:.0f} MiB, policy {policy}"
    if not limit:
        shown = f"{used / 2**20:.0f} MiB used, no limit, policy {policy}"
    if policy.startswith(("allkeys-", "volatile-")):
        return Finding(
            "warn",
            "memory",
            shown,
            "every stream has an expiry, so this policy evicts live streams when memory is "
            "short: set maxmemory-policy noeviction",
        )
    if limit and limit < _SMALL_MEMORY:
        return Finding("warn", "memory", shown, "raise maxmemory, or lower streams' retention")
    if limit and used > limit * _FULL:
        return Finding(
            "warn", "memory", shown, "nearly full: raise maxmemory, lower retention or max_chunks"
        )
    return Finding("ok", "memory", shown)


def _persistence(node: Node) -> Finding:
    if "aof_enabled" not in node.info:
        return Finding("warn", "persistence", "not checked: INFO is not allowed")
    if node.info["aof_enabled"]:
        return Finding("ok", "persistence", "append-only file")
    return Finding(
        "warn",
        "persistence",
        "no append-only file: a restarted server has lost recent or all chunks",
        "set appendonly yes",
    )


def _clock(node: Node) -> Finding:
    before = time.time()
    seconds, microseconds = node.client.time()
    middle = (before + time.time()) / 2
    skew = abs(seconds + microseconds / 1e6 - middle)
    if skew > _MOST_SKEW:
        return Finding(
            "warn",
            "clock",
            f"{skew:.1f} s away from the server's",
            "synchronise both with NTP: leases and credentials end by the clock",
        )
    return Finding("ok", "clock", f"within {skew * 1000:.1f} ms of the server's")


def _latency(node: Node) -> Finding:
    taken = []
    for _ in range(_PINGS):
        before = time.perf_counter()
        node.client.ping()
        taken.append(time.perf_counter() - before)
    median, worst = statistics.median(taken), max(taken)
    shown = f"{median * 1000:.2f} ms a round trip (worst of {_PINGS}: {worst * 1000:.2f} ms)"
    if median > _SLOW:
        return Finding("warn", "latency", shown, "run workers near the server")
    return Finding("ok", "latency", shown)


def _sharded_channels(streams: Streams) -> Finding:
    channel = streams.runtime.layout.live(_scratch())
    streams.runtime.link.call(Call("SPUBLISH", (channel,), ("",)))
    return Finding("ok", "sharded channels", "SPUBLISH works")


def _scripts(streams: Streams) -> Finding:
    key = streams.runtime.layout.lock(_scratch())
    script = load_script("celery_streams.redis", "compare_and_delete")
    streams.runtime.link.call(Call(script, (key,), ("none",)))
    return Finding("ok", "scripts", "EVAL and EVALSHA work")


def _compare_and_delete(streams: Streams) -> Finding:
    key = streams.runtime.layout.lock(_scratch())
    forms: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("DELIFEQ", ("none",)),
        ("DELEX", ("IFEQ", "none")),
    )
    for command, args in forms:
        try:
            streams.runtime.link.call(Call(command, (key,), args))
        except StreamError:
            continue
        return Finding("ok", "compare-and-delete", f"native ({command})")
    return Finding("ok", "compare-and-delete", "by script (the server has no command for it)")


def _write_and_read(streams: Streams) -> Finding:
    """Everything a worker and a reader do, as this user, on a stream that is removed again."""
    slot = _scratch()
    written = secrets.token_hex(8)
    try:
        before = time.perf_counter()
        streams.write_to(slot.owner, slot.key, create=True).append(written, timeout=10)
        appended = time.perf_counter() - before
        read = next(iter(streams.open_reader(slot, 0, 10)), None)
        whole = time.perf_counter() - before
        streams.close_stream(slot)
    finally:
        streams.runtime.store.delete(slot)
    if read != written:
        return Finding("fail", "write and read", f"read {read!r} instead of what was written")
    return Finding(
        "ok",
        "write and read",
        f"durable after {appended * 1000:.1f} ms, read after {whole * 1000:.1f} ms, "
        "credentials and connections included",
    )


def _scratch() -> Slot:
    return Slot.run(f"doctor-{secrets.token_hex(8)}")
