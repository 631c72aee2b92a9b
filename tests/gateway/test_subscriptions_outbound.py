"""Where webhooks may go: an address table, names that resolve badly, and DNS rebinding."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl

import pytest
import trustme

from celery_streams.errors import ConfigurationError
from celery_streams.gateway.subscriptions.outbound import Outbound, WebhookRejected, is_public
from celery_streams.settings import StreamsSettings
from tests.gateway.hooks import SUBS, Receiver, nodes

REFUSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254",
    "169.254.0.1", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.0.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "192.88.99.1",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::7f00:1",
    "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
    "2001:0:7f00:1::", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
    "100::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public(address):
    """Each special range, also inside of IPv6 addresses."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are(address):
    """Ordinary addresses pass."""
    assert is_public(ipaddress.ip_address(address))


def outbound(settings_for, *addresses, **settings):
    async def resolve(host, port):
        return addresses

    return Outbound(settings_for("redis://x", **settings), resolve)


BAD = [
    "", "x", "ftp://example.com/", "http://example.com/", "https://", "https:///x", "//example.com",
    "https://user@example.com/", "https://u:p@example.com/", "https://example.com:0/",
    "https://example.com:99999/", "https://exa mple.com/", "https://ex\u00e4mple.com/",
    "https://example.com\\@10.0.0.1/", "https://10.0.0.1/", "https://[::1]/", "https://127.0.0.1/",
    "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest/meta-data/", "https://[fe80::1]/",
    "http://localhost/", "http://127.0.0.1/", "https://[fe80::1%25eth0]/", "https://a..b/",
    "https://example.com\r\nX: y/", "javascript:alert(1)", "http://10.0.0.1/hook",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_urls_that_are_refused_at_once(settings_for, url):
    """Schemes, user names, literals and tricks of spelling."""
    with pytest.raises(WebhookRejected):
        asyncio.run(outbound(settings_for, "8.8.8.8").check(url))


@pytest.mark.parametrize("address", REFUSED)
def test_a_name_of_which_one_address_is_not_public(settings_for, address):
    """One bad address among good ones is enough, for the check and for the delivery."""
    for addresses in ((address,), ("8.8.8.8", address)):
        sender = outbound(settings_for, *addresses)
        with pytest.raises(WebhookRejected):
            asyncio.run(sender.check("https://hooks.example.com/x"))
        with pytest.raises(WebhookRejected):
            asyncio.run(sender.post("https://hooks.example.com/x", b"", {}, 5))


def test_a_name_with_public_addresses(settings_for):
    """Also with a dot at its end."""
    asyncio.run(outbound(settings_for, "8.8.8.8", "2606:4700::1").check("https://example.com./x"))


@pytest.mark.parametrize("numeric", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1"])
def test_other_spellings_of_an_address_are_names_for_the_resolver(settings_for, numeric):
    """What the resolver makes of them is judged."""
    with pytest.raises(WebhookRejected):
        asyncio.run(Outbound(settings_for("redis://x")).check(f"https://{numeric}/"))


def test_localhost_only_if_that_is_allowed(settings_for):
    """The exception covers localhost and 127.0.0.x, at loopback addresses, and nothing else."""
    allowed = outbound(settings_for, "127.0.0.1", gateway_webhook_localhost=True)
    for url in ("http://localhost:8080/x", "http://127.0.0.1/", "http://127.0.0.9:1/"):
        asyncio.run(allowed.check(url))
        with pytest.raises(WebhookRejected):
            asyncio.run(outbound(settings_for, "127.0.0.1").check(url))
    for url in ("http://10.0.0.1/", "http://127.1.0.1/", "http://[::1]/", "http://example.com/",
                "http://localhost.example.com/"):  # fmt: skip
        with pytest.raises(WebhookRejected):
            asyncio.run(allowed.check(url))
    poisoned = outbound(settings_for, "10.0.0.1", gateway_webhook_localhost=True)
    with pytest.raises(WebhookRejected):
        asyncio.run(poisoned.check("http://localhost/"))


def test_a_list_of_hosts(settings_for):
    """With a list only its hosts are allowed."""
    hosts = ("hooks.example.com", "*.example.org")
    listed = outbound(settings_for, "8.8.8.8", gateway_webhook_hosts=hosts)
    for good in (
        "https://hooks.example.com/",
        "https://HOOKS.example.com/",
        "https://a.example.org",
    ):
        asyncio.run(listed.check(good))
    for bad in ("https://example.com/", "https://example.org/", "https://xexample.org/",
                "https://8.8.8.8/"):  # fmt: skip
        with pytest.raises(WebhookRejected):
            asyncio.run(listed.check(bad))


ALLOWED = ("10.1.0.0/16", "172.20.5.0/24", "192.168.7.7", "100.64.0.0/10", "fd00::/8")
INSIDE = [
    "10.1.0.1", "10.1.255.255", "172.20.5.9", "192.168.7.7", "100.127.255.254", "fd12::1",
    "::ffff:10.1.2.3",
]  # fmt: skip
OUTSIDE = [
    "10.0.255.255", "10.2.0.1", "172.20.6.1", "192.168.7.8", "fc00::1", "::ffff:10.2.0.1",
    # Wrapped: no connection of ours goes through a translator into a network of ours.
    "64:ff9b::a01:1", "2002:a01:1::1", "2001:0:a01:1::", "::a01:1",
    # Never, whatever is named.
    "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "169.254.169.254", "168.63.129.16",
    "127.0.0.1", "::1", "fe80::1", "0.0.0.0", "224.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("address", [*INSIDE, *PUBLIC])
def test_a_private_network_that_is_named(settings_for, address):
    """As an address in the URL, and as what a name leads to; public hosts are as ever."""
    sender = outbound(settings_for, address, gateway_webhook_allow=ALLOWED)
    asyncio.run(sender.check("https://hooks.internal/x"))
    shown = f"[{address}]" if ":" in address else address
    asyncio.run(sender.check(f"https://{shown}/x"))
    with pytest.raises(WebhookRejected):
        asyncio.run(sender.check(f"http://{shown}/x"))


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_network_beside_those_that_are_named(settings_for, address):
    """Alone, and among addresses that are allowed."""
    for addresses in ((address,), ("10.1.0.1", address), ("8.8.8.8", address)):
        sender = outbound(settings_for, *addresses, gateway_webhook_allow=ALLOWED)
        with pytest.raises(WebhookRejected):
            asyncio.run(sender.check("https://hooks.internal/x"))
        with pytest.raises(WebhookRejected):
            asyncio.run(sender.post("https://hooks.internal/x", b"", {}, 5))


@pytest.mark.parametrize(
    "network",
    ["0.0.0.0/0", "::/0", "127.0.0.0/8", "169.254.0.0/16", "10.0.0.0/7", "192.168.0.1/16",
     "8.8.8.8", "::1/128", "fe80::/10", "::ffff:10.0.0.0/104", "10.0.0", "internal"],
)  # fmt: skip
def test_networks_that_cannot_be_named(monkeypatch, network):
    """Only private ones, spelt as what they are; otherwise nothing starts."""
    monkeypatch.setenv("CELERY_STREAMS_GATEWAY_WEBHOOK_ALLOW", f"10.1.0.0/16,{network}")
    with pytest.raises(ConfigurationError, match="GATEWAY_WEBHOOK_ALLOW"):
        StreamsSettings.load()


def test_a_name_that_resolves_differently_the_next_time(settings_for, monkeypatch):
    """The connection goes to the address that was judged: the second answer is never asked for."""
    answers = iter([("8.8.8.8",), ("8.8.4.4",), ("127.0.0.1",)])
    connected = []

    async def resolve(host, port):
        return next(answers)

    async def main():
        sender = Outbound(settings_for("redis://x", gateway_webhook_timeout=0.3), resolve)
        loop = asyncio.get_running_loop()

        async def getaddrinfo(*args, **kwargs):
            raise AssertionError("a name was looked up where an address was given")

        async def connect(self, request):
            connected.append((request.url.host, request.headers["host"], request.extensions))
            raise OSError("not here")

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr("httpx.AsyncHTTPTransport.handle_async_request", connect)
        url = "https://rebind.example.com/x"
        await sender.check(url)
        with pytest.raises(OSError, match="not here"):
            await sender.post(url, b"", {}, 1)
        with pytest.raises(WebhookRejected):
            await sender.post(url, b"", {}, 1)
        ((host, header, extensions),) = connected
        assert (host, header) == ("8.8.4.4", "rebind.example.com")
        assert extensions["sni_hostname"] == "rebind.example.com"
        await sender.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["hooks.example.com", "other.example.com"])
def test_the_certificate_must_be_for_the_name(settings_for, monkeypatch, tmp_path, name):
    """The connection is to an address, the certificate is checked for the name."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr("celery_streams.gateway.subscriptions.outbound.is_public", lambda _: True)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        sender = outbound(settings_for, "127.0.0.1")
        url = f"https://hooks.example.com:{port}/x"
        try:
            if name == "hooks.example.com":
                assert await sender.post(url, b"{}", {}, 5) == (200, b"ok")
            else:
                with pytest.raises(Exception, match=r"(?i)certificate"):
                    await sender.post(url, b"{}", {}, 5)
        finally:
            await sender.aclose()
            server.close()

    asyncio.run(main())


def test_the_api_says_so(valkey):
    """WEBHOOK_URL_REJECTED."""
    valkey.flush()

    async def main():
        async with nodes(valkey.url) as (node,), Receiver().listening() as hook:
            for url in ("http://10.0.0.1/hook", "https://169.254.169.254/", "http://example.com/"):
                answer = await node.ask(
                    "PUT",
                    f"{SUBS}/s",
                    {"type": "webhook", "pattern": "a/*", "webhook": {"url": url}},
                )
                assert answer.status == 400
                assert answer.document["error"]["code"] == "WEBHOOK_URL_REJECTED"
            assert hook.requests == []

    asyncio.run(main())
