"""From ``write()`` to the store: buffer, batch, send, retry."""
