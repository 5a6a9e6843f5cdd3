"""Users of a simulated experiment: activity and click rates differ between them, as they do."""

import numpy as np
import polars as pl

from infnet.experiments.metrics import parse_metric
from infnet.experiments.spec import Experiment

__all__ = ["CLICKS", "CTR", "EXPERIMENT", "users"]

EXPERIMENT = Experiment.model_validate({"name": "e", "variants": [{"name": "control"}, {"name": "new"}]})
CLICKS, CTR = parse_metric("click"), parse_metric("ctr=click/impressions")


def users(number=2000, lift=0.0, seed=0, names=("control", "new"), before=False):
    """A user table; the second variant multiplies click rates by ``1 + lift``."""
    rng = np.random.default_rng(seed)
    activity, rate = rng.gamma(1.0, 10.0, number), rng.beta(2.0, 8.0, number)
    variant = rng.integers(0, len(names), number)
    factor = np.where(variant == 1, 1 + lift, 1.0)
    columns = {}
    for suffix, by in (("_before", 1.0), ("", factor)) if before else (("", factor),):
        impressions = rng.poisson(activity) + 1
        columns[f"impressions{suffix}"] = impressions.astype(float)
        columns[f"click{suffix}"] = rng.binomial(impressions, np.minimum(rate * by, 1)).astype(float)
    return pl.DataFrame({"user_id": [f"u{i}" for i in range(number)], "variant": np.array(names)[variant], **columns})
