"""Credentials: minted once, shared by the fleet, removed only by value."""
