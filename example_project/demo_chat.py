"""``make demo-chat``: an embedded Valkey, a worker, and a chat page in front of them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from celery_streams import StreamError
from example_project.serve import watch
from example_project.stage import Stage, StageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C or SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="make demo-chat", description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="of the page; 0 for any")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    site = (
        *("-m", "uvicorn", "example_project.chat_site:app", "--host", "127.0.0.1"),
        *("--port", str(options.port), "--timeout-graceful-shutdown", "1"),
    )
    try:
        with Stage(gateway=site) as stage:
            print(
                f"""\
page     {stage.address}/
worker   process {stage.worker_pid}, log {stage.worker_log}

Ask something, then reload in mid-answer, open a second tab, or kill the worker's children:

  pkill -KILL -P {stage.worker_pid}

Ctrl+C ends everything and removes {stage.directory}.""",
                flush=True,
            )
            watch(stage)
    except KeyboardInterrupt:
        return 0
    except (StreamError, StageError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
