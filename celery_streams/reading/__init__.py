"""From the store to whoever tails a stream, sync and asyncio."""
