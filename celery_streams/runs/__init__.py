"""The run's own record: which attempt holds it, whether it is alive, how it ended."""
