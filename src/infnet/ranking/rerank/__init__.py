"""From scores to a page: what may stand beside what, and how varied it is."""
