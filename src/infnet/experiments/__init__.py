"""A/B tests: who sees what, what became of it, and whether that is more than luck.

Assignment (:mod:`~infnet.experiments.assignment`) needs no more than the core; the statistics need
``infnet[experiments]``.
"""
