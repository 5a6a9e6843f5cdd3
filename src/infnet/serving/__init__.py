"""Serving: requests as callers have them, answered from a bundle."""
