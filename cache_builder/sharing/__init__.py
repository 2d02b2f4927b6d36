"""A cache brought to other places, and back."""
