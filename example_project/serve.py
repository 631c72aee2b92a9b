"""``make serve``: an embedded Valkey, a worker and the gateway, to try things out with."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from celery_streams import StreamError
from example_project import gateway
from example_project.stage import Stage, StageError

_DAY = 86400.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C or SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="make serve", description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="of the gateway; 0 for any")
    parser.add_argument("--topic", default="json.dumps", help="of the first answer")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Stage(gateway.serve_arguments(options.port)) as stage:
            _explain(stage, options.topic)
            watch(stage)
    except KeyboardInterrupt:
        return 0
    except StreamError as error:
        print(error, file=sys.stderr)
    except StageError as error:
        print(error, file=sys.stderr)
    return 1


def _explain(stage: Stage, topic: str) -> None:
    # Imported here: the app looks its addresses up when it is imported.
    from example_project import tasks
    from example_project.app import streams

    run = tasks.answer.delay(topic)
    token = streams.token(["read:*"], ttl=_DAY)
    server, celery = os.environ["EXAMPLE_SERVER"], f"{sys.executable} -m celery"
    print(
        f"""\
gateway  {stage.address}
worker   process {stage.worker_pid}, log {stage.worker_log}
token    {token}

Watch the answer to {topic!r}, which is being written now:

  curl -N -H 'Authorization: Bearer {token}' \\
    '{gateway.run_url(stage.address, run.id)}?live=sse&offset=-1'

Ask another question (it prints the run's id):

  EXAMPLE_SERVER={server} {celery} -A example_project.app \\
    call example_project.tasks.answer --args '["functools.lru_cache"]'

The page at {stage.address}/ shows runs; it asks for the token.
Ctrl+C ends everything and removes {stage.directory}.""",
        flush=True,
    )


def watch(stage: Stage) -> None:
    """Wait for ever. Raises :class:`StageError` when a process of the stage ends by itself."""
    while True:
        time.sleep(0.5)
        if name := stage.dead():
            raise StageError(f"the {name} has ended by itself; see {stage.directory}")


if __name__ == "__main__":
    sys.exit(main())
