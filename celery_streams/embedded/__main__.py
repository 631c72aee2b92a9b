"""``python -m celery_streams.embedded <directory>``: the supervisor of one directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery_streams.embedded.supervisor import supervise

if __name__ == "__main__":
    # Forked once more, so that the supervisor is nobody's child: the process that happened to
    # start it neither waits for it nor takes it along when it ends.
    if os.fork():
        os._exit(0)
    sys.exit(supervise(Path(sys.argv[1])))
