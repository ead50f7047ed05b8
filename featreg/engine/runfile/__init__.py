"""A run as a YAML file."""
