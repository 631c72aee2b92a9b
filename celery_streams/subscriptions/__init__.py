"""Subscriptions: durable cursors over streams that wake somebody when there is more.

PROTOCOL.md of Durable Streams, sections 6 and 7, and what is said there about wakes, generations
and leases. Here is their state, in Redis, which every process changes by scripts; the gateway has
the HTTP side and the deliveries.
"""
