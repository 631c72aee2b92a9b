"""A documentation assistant that streams its answers: the example, and what the demo runs."""
