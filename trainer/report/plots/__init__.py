"""The figures of the page, light and dark, from plain numbers."""
