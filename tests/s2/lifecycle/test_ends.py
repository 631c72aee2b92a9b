"""Every run's streams on S2 end, however the run does: the very tests of the Redis store."""

from tests.lifecycle.test_ends import *  # noqa: F403

# Its task has one second to live, which S2 may need for the first chunk on a busy machine; how
# long a lease is does not depend on where the chunks are.
del test_the_lease_of_a_late_acknowledging_task_outlasts_the_broker_s_patience  # noqa: F821
