"""The types users see."""
