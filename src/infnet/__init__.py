"""INFNet: a task-aware information flow network, as a complete ranking system."""

__version__ = "0.1.0"
