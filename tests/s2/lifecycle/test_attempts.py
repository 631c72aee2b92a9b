"""Attempts on S2 follow each other without a gap: the very tests of the Redis store."""

from tests.lifecycle.test_attempts import *  # noqa: F403
