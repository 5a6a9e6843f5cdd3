"""From samples of the service's own traffic to the next bundle: growth, incremental training, and a guard."""
