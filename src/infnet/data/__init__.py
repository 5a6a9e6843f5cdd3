"""Raw logs to prepared, memory-mapped datasets and batches; knows files, not models."""
