"""Where logs come from: known datasets and the built-in synthetic world."""
