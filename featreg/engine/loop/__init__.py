"""The one loop that reads, decodes, runs the model and writes."""
