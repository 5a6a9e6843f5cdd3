"""The synthetic world's users in front of a real service, day after day."""
