"""Building blocks that know tensors, not features."""
