"""Tasks of every shape stream to S2: the very tests of the Redis store."""

from tests.lifecycle.test_shapes import *  # noqa: F403
