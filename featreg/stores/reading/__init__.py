"""A store as its readers see it."""
