"""Stands in for ``valkey-cli`` (which no wheel carries): one command, its reply, its status."""

from __future__ import annotations

import argparse
import sys

import redis


def main() -> int:
    """Send the command; 0 if the server answered without an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", type=int, default=6379)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    try:
        with redis.Redis(port=given.p, socket_timeout=3, decode_responses=True) as client:
            print(client.execute_command(*given.command))
    except (redis.RedisError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
