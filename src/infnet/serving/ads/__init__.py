"""Ads while serving: what is known when positions are sold, and who pays once they are seen."""
