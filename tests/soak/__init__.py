"""Faults injected many times over, each with a line that says what it cost."""
