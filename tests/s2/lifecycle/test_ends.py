"""Every run's streams on S2 end, however the run does: the very tests of the Redis store."""

from tests.lifecycle.test_ends import *  # noqa: F403
