"""Chat-agent tasks: a session that outlives runs."""
