"""Ads on a page: what they pay, how their budgets last the day, and how often a user sees them."""
