"""Who of the synthetic world's users come on a day: whoever was shown what they like comes back sooner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infnet.data.sources.latent import Floats, Ints
from infnet.data.sources.world import World

__all__ = ["first_day", "next_day"]


def first_day(world: World, users: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) who of the users is here on a day of which nothing is known before: a day in the long run."""
    # Come tomorrow with probability a after being here, b after being away, on the usual fare.
    usual = np.full(len(users), world.config.long_view_rate, np.float32)
    a, b = world.return_probability(users, usual), world.return_probability(users, usual, was="away")
    return np.asarray(rng.random(len(users), dtype=np.float32) < b / (1 - a + b))


def next_day(
    world: World, users: Ints, was_here: NDArray[np.bool_], joy: Floats, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Floats]:
    """Who comes tomorrow, and each one's probability, (n,) both.

    Args:
        users: (n,) who.
        was_here: (n,) whether they were here today.
        joy: Mean true ``p_long_view`` of what each of those was shown who were here.
    """
    p_return = world.return_probability(users, np.float32(0), was="away")
    p_return[was_here] = world.return_probability(users[was_here], joy)
    return rng.random(len(users), dtype=np.float32) < p_return, p_return
