"""From predictions to a page: what an item is worth, and what a page may hold."""
