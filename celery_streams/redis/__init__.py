"""Talking to Redis and Valkey: addresses, connections, scripts. Knows nothing of streams."""
