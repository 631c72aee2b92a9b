"""Sessions on S2: the very tests of the Redis store."""

from tests.lifecycle.test_chat import *  # noqa: F403
