"""The data plane: where the chunks are."""
