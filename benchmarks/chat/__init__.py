"""``make bench-chat``: a chat agent's first chunk, beside an endpoint written by hand."""
