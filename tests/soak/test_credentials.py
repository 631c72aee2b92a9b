"""Credentials withdrawn under load: one initialize for the fleet, and no chunk the worse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_streams import Slot
from tests.servers import ServerProcess
from tests.servers.children import eventually
from tests.soak.harness import Report, streams_at, wait_for_progress, writing

pytestmark = pytest.mark.soak

SLOT = Slot.run("soak")


def test_revocation_under_load_costs_one_initialize_and_no_chunk(
    server: ServerProcess, times: Callable[[int, int], int]
) -> None:
    """Eight processes are refused at once; one initializes, all resend what was refused."""
    report = Report("credentials revoked under 8 writing processes")
    direct = streams_at(server.url)
    cached = direct.runtime.layout.cached_credentials(SLOT)
    client = server.client()
    with writing(server.url, SLOT) as fleet:
        for _ in range(times(5, 200)):
            before = client.get(cached)
            assert direct.runtime.authority.revoke(SLOT) == 1
            eventually(lambda: client.get(cached) not in (None, before), "new credentials")  # noqa: B023
            wait_for_progress(direct, SLOT)
            report.injected += 1
        fleet.finish(server.url, report)
        report.notes["initializes"] = report.initializes
        report.assert_clean()
        assert report.initializes == 1 + report.injected
    direct.close()
