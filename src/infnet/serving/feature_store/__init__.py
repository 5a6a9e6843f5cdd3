"""What is known of users and items right now: an embedded store for one process, Redis for several."""
