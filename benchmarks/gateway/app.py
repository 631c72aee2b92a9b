"""The gateway under test, served as ``streams serve`` does it (``-m benchmarks.gateway.app``)."""

from __future__ import annotations

import os
import sys

from benchmarks.project import make_project
from celery_streams.gateway import connections, create_app, serving


def main(port: int) -> None:
    """Serve the streams at ``BENCHMARKS_URL`` to everybody, until SIGTERM."""
    streams = make_project(os.environ["BENCHMARKS_URL"]).streams
    listener = connections.listen("127.0.0.1", port, backlog=4096)
    gateway = create_app(streams, insecure=True)
    serving.serve(gateway, streams.settings, listener, access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
