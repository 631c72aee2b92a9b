"""All settings, in one place, each with its unit, default and reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from celery_streams.errors import ConfigurationError

ENV_PREFIX = "CELERY_STREAMS_"
CONF_PREFIX = "streams_"

T = TypeVar("T")


def _several(value: object) -> object:
    """An environment variable's list: as JSON, or simply between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("starts like a JSON list and is none") from None
    return [item.strip() for item in value.split(",") if item.strip()]


#: What :attr:`StreamsSettings.gateway_webhook_allow` can name a part of: private use (RFC 1918),
#: shared address space (RFC 6598) and unique local addresses (RFC 4193).
_PRIVATE = tuple(
    ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)


def _private(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    if not any(_within(network, private) for private in _PRIVATE):
        raise ValueError(f"{network} is not within {', '.join(map(str, _PRIVATE))}")
    return network


def _within(network: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return (
        network.version == other.version
        and network.prefixlen >= other.prefixlen
        and network.network_address in other
    )


PrivateNetwork = Annotated[IPv4Network | IPv6Network, AfterValidator(_private)]


#: A list; in the environment JSON, or values between commas.
Several = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_several)]


class StreamsSettings(BaseSettings):
    """Settings of one :class:`~celery_streams.Streams`.

    Read, first match wins, from keyword arguments, environment variables
    ``CELERY_STREAMS_<NAME>`` and ``app.conf`` keys ``streams_<name>``.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    #: Where chunks live: ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://``,
    #: ``rediss+cluster://``, ``embedded://[directory]`` or ``s2://basin``. Not set: Celery's
    #: result backend, else its broker, if that is Redis.
    url: SecretStr | None = None
    #: With chunks on S2: where the runs' records, locks and cached credentials live, in the forms
    #: of ``url`` that lead to Redis. Not set: Celery's result backend, else its broker, if that
    #: is Redis.
    redis_url: SecretStr | None = None
    #: The access token for S2 of this process (or the URL's user name, or the environment's
    #: ``S2_ACCESS_TOKEN``). Whoever mints needs one that may do everything in the basin; readers
    #: one that may read; a worker that gets its credentials from a gateway (``authority_url``)
    #: none.
    s2_access_token: SecretStr | None = None
    #: The gateway that mints this process's write credentials (``https://host[/prefix]``), with
    #: an access token for it (scopes ``admin:runs/*`` and ``admin:sessions/*``). Not set: this
    #: process mints them itself.
    authority_url: str | None = Field(None, pattern=r"^https?://[^/?#@]+[^?#]*$")
    authority_token: SecretStr | None = None
    #: Key material for everything secret. Credentials cached in Redis are encrypted, and access
    #: tokens signed, with keys derived from it. Not set: credentials are encrypted with a key
    #: derived from the user name and password of ``url``, and there are no tokens.
    secret: SecretStr | None = None
    #: First part of every Redis key and channel.
    prefix: str = Field("cs", pattern=r"^[A-Za-z0-9._:-]{1,64}$")

    #: Largest serialized chunk, bytes.
    max_chunk_bytes: int = Field(1024 * 1024, gt=0)
    #: Serialized chunks one writer may hold that are not durable yet, bytes; then it blocks.
    buffer_bytes: int = Field(4 * 1024 * 1024, gt=0)
    #: Largest batch sent as one entry, bytes and chunks.
    batch_bytes: int = Field(512 * 1024, gt=0)
    batch_chunks: int = Field(8192, gt=0)
    #: Seconds ``write()`` waits for room in a full buffer before ``WriteTimeout``.
    write_timeout: float = Field(30.0, gt=0)
    #: Seconds a writer keeps retrying through transient errors before it ends with
    #: ``StoreUnavailable``.
    retry_timeout: float = Field(45.0, gt=0)
    #: Seconds the end of a task waits for its chunks to be durable.
    drain_timeout: float = Field(60.0, gt=0)
    #: A drain that fails makes the task fail (``"fail"``), or is logged (``"log"``).
    drain_failure: Literal["fail", "log"] = "fail"

    #: Seconds a closed stream, or an open one after its last append, is kept.
    retention: float = Field(86400.0, gt=0)
    #: Chunks a stream keeps; older ones are trimmed by whole batches. 0: all.
    max_chunks: int = Field(0, ge=0)
    #: Seconds without a sign of life after which a run's worker counts as lost.
    orphan_timeout: float = Field(60.0, gt=0)
    #: Replicas that must hold a batch before it counts as durable (``WAIT``). 0: the primary.
    wait_replicas: int = Field(0, ge=0)

    #: Life of minted credentials, seconds.
    credentials_ttl: float = Field(86400.0, gt=0)
    #: Credentials are refreshed when less than this fraction of their life remains.
    refresh_ahead: float = Field(0.1, ge=0, lt=1)
    #: Slots whose credentials one process remembers (least recently used go first).
    cache_size: int = Field(10_000, gt=0)
    #: Seconds one process may hold a slot's lock: the longest ``initialize`` may take.
    lock_lease: float = Field(10.0, gt=0)

    #: Seconds after which an idle reader looks at the log itself, in case a wake-up was lost.
    recheck_interval: float = Field(5.0, gt=0)
    #: Seconds to connect, and to wait for one reply, before the connection counts as broken.
    connect_timeout: float = Field(3.0, gt=0)
    socket_timeout: float = Field(5.0, gt=0)

    #: Chat agents that the gateway serves: tasks' names, or ``name=task`` for another name in the
    #: URL.
    chat_agents: Several[str] = ()
    #: Messages that may wait in one session while a turn is active.
    chat_max_pending: int = Field(32, gt=0, le=1000)
    #: Turns, the last ones, whose chunks stay in a session's ``out`` stream.
    chat_keep_turns: int = Field(8, gt=0)
    #: Branches that a session keeps, the last ones that an edit or a regenerate has left. 0: none.
    chat_keep_branches: int = Field(16, ge=0, le=1000)

    #: Other values of ``secret`` whose tokens are accepted, too: the former one during a change.
    token_secrets: Several[SecretStr] = ()
    #: Public keys of issuers whose tokens are accepted: PEM texts, or paths of files with PEM
    #: keys or a JSON Web Key Set. RSA (RS256), P-256 (ES256) and Ed25519 (EdDSA).
    token_public_keys: Several[str] = ()
    #: Whom a token must be meant for (its ``aud``).
    token_audience: str = Field("celery-streams", min_length=1)

    #: Largest body of a request to the gateway, bytes.
    gateway_max_body_bytes: int = Field(8 * 1024 * 1024, gt=0)
    #: Most messages of one request's JSON array: others wait while it is taken apart.
    gateway_max_messages: int = Field(50_000, gt=0)
    #: Longest URL (path and query), bytes.
    gateway_max_url_bytes: int = Field(8 * 1024, gt=0)
    #: All of a request's headers together, bytes.
    gateway_max_header_bytes: int = Field(16 * 1024, gt=0)
    #: Live reads that one token may have open at once, in one gateway process.
    gateway_connections_per_token: int = Field(1000, gt=0)
    #: Seconds a client has to send the whole body.
    gateway_body_timeout: float = Field(30.0, gt=0)
    #: Seconds a long poll waits for something new.
    gateway_long_poll_timeout: float = Field(30.0, gt=0)
    #: Seconds after which a server-sent event stream ends and its client connects again.
    gateway_sse_lifetime: float = Field(60.0, gt=0)
    #: What one slow subscriber may have waiting before it is cut off, bytes.
    gateway_subscriber_buffer: int = Field(1024 * 1024, gt=0)
    #: Origins whose pages may read with a browser (CORS).
    gateway_cors_origins: Several[str] = ("*",)
    #: Connections to Redis that one gateway process opens for requests.
    gateway_redis_connections: int = Field(8, gt=0)
    #: Connections that one process of ``streams serve`` has open at once; fewer if the system
    #: allows it fewer files.
    gateway_max_connections: int = Field(20_000, gt=0)
    #: Seconds ``streams serve`` gives requests to end when it is told to stop.
    gateway_shutdown_timeout: float = Field(8.0, gt=0)
    #: ``/metrics`` answers without a token.
    gateway_metrics_public: bool = False

    #: Webhooks may go to ``http://localhost`` and ``http://127.0.0.x``: for development.
    gateway_webhook_localhost: bool = False
    #: The hosts that webhooks may go to (``hooks.example.com``, ``*.example.com``). Empty: every
    #: public one.
    gateway_webhook_hosts: Several[str] = ()
    #: Private networks that webhooks may go to, too, as CIDRs (``10.1.0.0/16``, ``fd12::/48``).
    gateway_webhook_allow: Several[PrivateNetwork] = ()
    #: Seconds a webhook's receiver has to answer, from the look-up of its name on.
    gateway_webhook_timeout: float = Field(10.0, gt=0)

    @classmethod
    def load(
        cls, conf: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
    ) -> StreamsSettings:
        """Settings from ``overrides``, the environment and a Celery ``conf``, in that order.

        The environment may have names of others' under our prefix (an orchestrator's, of a
        service that is called like this package), so unknown ones there are no error.

        Raises:
            ConfigurationError: a value is out of range, or a name in ``overrides`` or ``conf`` is
                unknown; names all of them.
        """
        try:
            given = dict(overrides or {})
            from_environment = cls(**given)
            ours = [name for name in conf or () if name.startswith(CONF_PREFIX)]
            for name in (each.removeprefix(CONF_PREFIX) for each in ours):
                if name not in cls.model_fields:
                    given[name] = None  # to be named with all that is wrong
            for name in cls.model_fields:
                value = (conf or {}).get(CONF_PREFIX + name)
                if value is not None and name not in from_environment.model_fields_set:
                    given[name] = value
            return cls(**given)
        except ValidationError as error:
            raise ConfigurationError(_explained(error)) from None


def _explained(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"there is no setting {name!r}")
        else:
            problems.append(f"{ENV_PREFIX}{name.upper()}: {item['msg']}")
    return "invalid celery-streams settings: " + "; ".join(problems)
