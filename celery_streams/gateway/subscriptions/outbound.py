"""Requests to addresses that clients have chosen: to public hosts only (PROTOCOL 12.8), and to
private networks that the operator has named.

A name is resolved here, once, every address is judged, and the connection goes to the address
that was judged: a name that resolves differently the next time gains nothing. No redirect is
followed, no proxy asked, and neither time nor the answer's size is the receiver's to choose.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import httpx

from celery_streams.settings import StreamsSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

#: Bytes of an answer that are looked at.
MAX_ANSWER_BYTES = 64 * 1024
_SCHEMES = {"http": 80, "https": 443}
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_LOCAL_V4 = ipaddress.ip_network("127.0.0.0/24")
#: Networks that carry IPv4 addresses inside of IPv6 ones: NAT64 (RFC 6052, RFC 8215).
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
#: What is not for us to talk to, whatever Python's tables or the settings call it.
_NEVER = (
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.ip_network("168.63.129.16/32"),  # a cloud's own services
    ipaddress.ip_network("fec0::/10"),  # site-local
    ipaddress.ip_network("fd00:ec2::/32"),  # metadata, as the next two
    ipaddress.ip_network("fd20:ce::254/128"),
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("::/96"),  # IPv4-compatible
)


class WebhookRejected(Exception):
    """A URL that no request goes to; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL, taken apart. ``local``: it is covered by the exception for development."""

    scheme: str
    host: str
    port: int
    target: str
    local: bool

    @property
    def authority(self) -> str:
        """What goes into the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _SCHEMES[self.scheme] else f"{host}:{self.port}"


async def _resolve(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


class Outbound:
    """Sends webhooks."""

    def __init__(self, settings: StreamsSettings, resolve: Resolve = _resolve) -> None:
        self._localhost = settings.gateway_webhook_localhost
        self._networks = settings.gateway_webhook_allow
        self._hosts = tuple(host.lower() for host in settings.gateway_webhook_hosts)
        self._timeout = settings.gateway_webhook_timeout
        self._resolve = resolve

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            # A connection is to an address: kept, it could be taken for another host's.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def check(self, url: str) -> None:
        """Refuse ``url`` if it leads elsewhere than to a public host, as far as that shows now.

        Raises:
            WebhookRejected: it does.
        """
        endpoint = self.parse(url)
        try:
            async with asyncio.timeout(self._timeout):
                await self._address(endpoint)
        except (OSError, UnicodeError):
            return  # no such name yet, or a resolver out of order: it is looked up again

    def parse(self, url: str) -> Endpoint:
        """Take a URL apart. Raises :class:`WebhookRejected`."""
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise WebhookRejected("the URL has characters that must be percent-encoded")
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname
        except ValueError:
            raise WebhookRejected("this is no URL") from None
        if parts.scheme not in _SCHEMES or not host:
            raise WebhookRejected("the URL must start with https:// and name a host")
        if "@" in parts.netloc:
            raise WebhookRejected("the URL must not hold a user name or password")
        if port == 0:
            raise WebhookRejected("there is no port 0")
        literal = _literal(host)
        if literal is None and not _NAME.fullmatch(host):
            raise WebhookRejected("the URL names no host")
        host = host.rstrip(".")
        local = self._localhost and (
            host == "localhost" or (literal is not None and literal in _LOCAL_V4)
        )
        if parts.scheme != "https" and not local:
            raise WebhookRejected("the URL must start with https://")
        if self._hosts and not local and not self._listed(host):
            raise WebhookRejected(f"{host} is not among the hosts that webhooks may go to")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Endpoint(parts.scheme, host, port or _SCHEMES[parts.scheme], target, local)

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], most_seconds: float
    ) -> tuple[int, bytes]:
        """Send ``body``; the status and the beginning of the answer.

        Raises:
            WebhookRejected: it must not go there.
            OSError, httpx.HTTPError: it did not arrive, or was not answered in time.
        """
        endpoint = self.parse(url)
        async with asyncio.timeout(min(self._timeout, most_seconds)):
            address = await self._address(endpoint)
            shown = f"[{address}]" if address.version == 6 else str(address)
            request = self._client.build_request(
                "POST",
                f"{endpoint.scheme}://{shown}:{endpoint.port}{endpoint.target}",
                content=body,
                headers={
                    "host": endpoint.authority,
                    "accept-encoding": "identity",
                    "user-agent": "celery-streams",
                    **headers,
                },
                # Whom the certificate must be for: the name, not the address.
                extensions={"sni_hostname": endpoint.host},
            )
            response = await self._client.send(request, stream=True)
            try:
                answer = bytearray()
                async for part in response.aiter_raw():
                    answer += part
                    if len(answer) > MAX_ANSWER_BYTES:
                        break
                return response.status_code, bytes(answer[:MAX_ANSWER_BYTES])
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        """Close what is open."""
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def _address(self, endpoint: Endpoint) -> Address:
        """Where to connect to. Every address of the name must be allowed, not just one."""
        literal = _literal(endpoint.host)
        if literal is not None:
            found = [literal]
        else:
            texts = await self._resolve(endpoint.host, endpoint.port)
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        if not found:
            raise OSError(f"{endpoint.host} has no address")
        for address in found:
            allowed = address.is_loopback if endpoint.local else self._allows(address)
            if not allowed:
                raise WebhookRejected(f"{endpoint.host} is not a public host")
        return found[0]

    def _allows(self, address: Address) -> bool:
        """Whether an address is public, or in a private network that the settings name."""
        if is_public(address):
            return True
        address = getattr(address, "ipv4_mapped", None) or address  # where it leads
        return not is_never(address) and any(address in network for network in self._networks)

    def _listed(self, host: str) -> bool:
        return any(
            host.endswith(each[1:]) if each.startswith("*.") else host == each
            for each in self._hosts
        )


def is_never(address: Address) -> bool:
    """Whether an address is one of those no setting allows."""
    return any(address in network for network in _NEVER)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if any(address in network for network in _NAT64):
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        for each in inner:
            if each is not None and not is_public(each):
                return False
        if address.ipv4_mapped is not None:
            return True
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return address.is_global and not is_never(address)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
