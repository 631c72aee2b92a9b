"""The network breaks, tokens are asked for: the page goes on exactly where it was."""

from __future__ import annotations

import time
import uuid

from playwright.sync_api import Route, expect

from celery_streams.tokens import Tokens
from tests.browser.conftest import Browse
from tests.browser.stage import Gateway, Network, gateway, writer
from tests.browser.test_viewing import copied, numbers, stored
from tests.servers import ValkeyProcess

#: What a browser says of a connection that does not come about.
CUT = ("net::ERR_",)


def test_connections_that_are_cut_lose_nothing_and_double_nothing(
    site: Gateway, network: Network, browse: Browse
) -> None:
    """Cut again and again, in the middle of what is sent: what arrives is what was written."""
    run_id, count = f"cut-{uuid.uuid4().hex[:6]}", 1_500
    watched = browse()
    watched.expected = CUT
    page = watched.open(f"http://127.0.0.1:{network.port}/#/runs/{run_id}")
    with writer(site.server, run_id, count, pause=0.004) as process:
        expect(page.locator("#chunks")).not_to_have_text("0 chunks")
        for number in range(8):
            network.cut_after(211 + 97 * number, "down").wait(5)
            page.wait_for_timeout(250)
            network.cut()
            page.wait_for_timeout(250)
        assert process.wait(timeout=30) == 0
    expect(page.locator("#chunks")).to_have_text("1,500 chunks", timeout=30_000)
    expect(page.locator("#connection-detail")).to_contain_text("reconnected")
    assert copied(page) == numbers(count) == stored(site, run_id)


def test_a_network_that_is_gone_is_shown_and_waited_for(
    site: Gateway, network: Network, browse: Browse
) -> None:
    """It says "Reconnecting" while it is away, then shows everything that was written."""
    run_id = f"gone-{uuid.uuid4().hex[:6]}"
    watched = browse()
    watched.expected = CUT
    with site.streams.write_to(run_id, create=True) as chunks:
        chunks.write("before ")
        page = watched.open(f"http://127.0.0.1:{network.port}/#/runs/{run_id}")
        expect(page.locator(".connection .word")).to_have_text("Live")
        network.refuse()
        expect(page.locator(".connection .word")).to_have_text("Reconnecting")
        expect(page.locator("#announcer")).to_contain_text("Reconnecting")
        chunks.write("meanwhile ")
        chunks.flush()
        page.wait_for_timeout(1_500)
        assert copied(page) == "before "
        network.accept()
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("#blocks")).to_have_text("before meanwhile ")
        expect(page.locator(".connection .word")).to_have_text("Live")
        chunks.write("after")
    expect(page.locator("#blocks")).to_have_text("before meanwhile after")
    assert copied(page) == stored(site, run_id)


def test_a_stream_is_awaited_before_it_exists(site: Gateway, browse: Browse) -> None:
    """Opened by its id before its first chunk; its type is what its writer chooses."""
    run_id = f"early-{uuid.uuid4().hex[:6]}"
    page = browse().open(f"{site.url}#/runs/{run_id}")
    expect(page.locator("#foot")).to_have_text("Nothing has been written yet.")
    expect(page.locator(".kind .state")).to_have_text("Pending")
    with site.streams.write_to(run_id, create=True, content_type="text/plain") as text:
        text.write("plain\n text")
    expect(page.locator("#blocks")).to_have_text("plain\n text")


def test_half_a_head_is_asked_for_again(site: Gateway, browse: Browse) -> None:
    """Chromium takes a head that was cut for a whole one: without a type, JSON is not text."""
    run_id = f"half-{uuid.uuid4().hex[:6]}"
    watched = browse()
    answered: list[str] = []

    def half(route: Route) -> None:
        if route.request.method != "HEAD" or "half" in answered:
            route.continue_()
            return
        answered.append("half")
        route.fulfill(status=200, headers={"cache-control": "no-store"})

    watched.context.route("**/v1/stream/runs/**", half)
    page = watched.open(f"{site.url}#/runs/{run_id}")
    expect(page.locator("#foot")).to_have_text("Nothing has been written yet.")
    answered.clear()  # the page has asked before there was anything
    with site.streams.write_to(run_id, create=True) as chunks:
        chunks.write("as ")
        chunks.write("text")
    expect(page.locator("#blocks")).to_have_text("as text")
    assert answered == ["half"]


def test_a_secured_gateway_asks_for_a_token_and_keeps_it_out_of_urls(
    secured: Gateway, browse: Browse
) -> None:
    """A bad token is refused in words, a good one opens the list and the stream."""
    run_id = f"secret-{uuid.uuid4().hex[:6]}"
    with secured.streams.write_to(run_id, create=True) as chunks:
        chunks.write("for you only")
    token = secured.streams.token(["read:runs/*", "read:sessions/*"])
    watched = browse()
    watched.expected = ("status of 401", "status of 404")
    page = watched.open(f"{secured.url}#/runs/{run_id}")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    dialog = page.get_by_role("dialog", name="Sign in")
    expect(dialog).to_be_visible()
    assert "for you only" not in page.content()
    page.get_by_label("Access token").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("refused")
    page.get_by_label("Access token").fill(token)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#blocks")).to_have_text("for you only")
    expect(page.get_by_role("navigation").get_by_role("link", name=run_id)).to_be_visible()
    assert asked
    assert not [url for url in asked if token in url or "token=" in url]
    assert token not in secured.log.text
    page.reload()
    expect(page.locator("#blocks")).to_have_text("for you only")
    page.get_by_role("button", name="curl").click()
    command = str(page.evaluate("navigator.clipboard.readText()"))
    assert token not in command
    assert "$TOKEN" in command
    page.get_by_role("button", name="Sign out").click()
    expect(dialog).to_be_visible()


def test_a_token_for_one_run_opens_that_run_only(secured: Gateway, browse: Browse) -> None:
    """The list says why it is empty; the run is shown all the same."""
    run_id = f"mine-{uuid.uuid4().hex[:6]}"
    with secured.streams.write_to(run_id, create=True) as chunks:
        chunks.write("mine")
    watched = browse()
    watched.expected = ("status of 401", "status of 403")
    page = watched.open(secured.url)
    settings = secured.streams.settings
    page.get_by_label("Access token").fill(Tokens(settings).mint([f"read:runs/{run_id}"], 60))
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation")).to_contain_text("This token may not list runs")
    page.keyboard.press("/")
    page.keyboard.type(run_id)
    page.keyboard.press("Enter")
    expect(page.locator("#blocks")).to_have_text("mine")


def test_the_servers_usual_goodbye_is_no_interruption(
    valkey: ValkeyProcess, browse: Browse
) -> None:
    """A connection that ended in good order is made again at once, and nobody is told."""
    run_id = f"bye-{uuid.uuid4().hex[:6]}"
    with gateway(valkey, CELERY_STREAMS_GATEWAY_SSE_LIFETIME="1.5") as site:
        page = browse().open(f"{site.url}#/runs/{run_id}")
        with site.streams.write_to(run_id, create=True) as chunks:
            for number in range(100):
                chunks.write(f"{number} ")
                chunks.flush()
                time.sleep(0.05)
        expect(page.locator("#blocks")).to_have_text("".join(f"{n} " for n in range(100)))
        assert site.log.text.count(f"runs/{run_id}/default?offset=") > 2
        expect(page.locator("#connection-detail")).to_have_text("")
        page.close()
