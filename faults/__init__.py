"""Runs that are killed, starved and damaged on purpose, and what is left of their stores: ``python -m faults``."""
