"""Which variants a user gets: a hash of the user's id, no state, the same answer everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from infnet.experiments.hashing import Range, bucket_ranges, fnv1a_32, unit_hash
from infnet.experiments.spec import Experiment, ExperimentsSpec

__all__ = ["Assigner"]

_Bucket = float


class Assigner:
    """Assigns users to the variants of all experiments.

    A user's bucket in a layer says in which of its experiments he may be, and an independent bucket of each experiment
    in which variant (GrowthBook's filters, ranges and hash version 2). Coverage that grows adds users and moves none.
    """

    def __init__(self, spec: ExperimentsSpec) -> None:
        self.spec = spec
        self._holdout, self._held_out = spec.holdout, _Hash("holdout:")
        holdouts = {layer.name: layer.holdout for layer in spec.layers}
        self._layers = [
            _Layer(name, holdouts.get(name, 0.0), [e for e in spec.experiments if e.layer == name])
            for name in dict.fromkeys(e.layer for e in spec.experiments)
        ]

    def assign(self, user_id: str, time_ms: int) -> Mapping[str, str]:
        """Variant by experiment, without those that the user is not in.

        Args:
            user_id: Raw key of the user.
            time_ms: Milliseconds since 1970.
        """
        is_held_out = self._holdout > 0 and self._held_out(user_id) < self._holdout
        assigned: dict[str, str] = {}
        for layer in self._layers:
            found = layer.variant(user_id, time_ms, is_held_out)
            if found is not None:
                assigned[found[0]] = found[1]
        return assigned


class _Hash:
    """Bucket of a user for a seed: :func:`unit_hash` in version 2, with the seed hashed once for all."""

    def __init__(self, seed: str) -> None:
        self._state = fnv1a_32(seed)

    def __call__(self, user_id: str) -> _Bucket:
        return fnv1a_32(str(fnv1a_32(user_id, self._state))) % 10_000 / 10_000


class _Step(NamedTuple):
    """From a time on, who is in which variant."""

    since_ms: float
    variants: list[tuple[Range, str]]


class _Layer:
    """The experiments of a layer."""

    def __init__(self, name: str, holdout: float, experiments: list[Experiment]) -> None:
        self._holdout, self._held_out = holdout, _Hash(f"holdout:{name}")
        self._bucket = _Hash(f"layer:{name}")
        self._experiments = [_Running(experiment) for experiment in experiments]
        self._forced = {
            user: (experiment.name, variant)
            for experiment in experiments
            for user, variant in experiment.forced.items()
        }

    def variant(self, user_id: str, time_ms: int, is_held_out: bool) -> tuple[str, str] | None:
        """The experiment that a user is in, and the variant."""
        if user_id in self._forced:
            return self._forced[user_id]
        if is_held_out or (self._holdout > 0 and self._held_out(user_id) < self._holdout):
            return None
        bucket = self._bucket(user_id)
        for experiment in self._experiments:
            if experiment.first <= bucket < experiment.last and experiment.since_ms <= time_ms < experiment.until_ms:
                variant = experiment.variant(user_id, time_ms)
                return None if variant is None else (experiment.name, variant)
        return None


class _Running:
    """An experiment, with everything worked out that does not depend on the user."""

    def __init__(self, experiment: Experiment) -> None:
        self.name = experiment.name
        self.first, self.last = experiment.range
        self.since_ms = -float("inf") if experiment.start is None else experiment.start.timestamp() * 1000
        self.until_ms = float("inf") if experiment.end is None else experiment.end.timestamp() * 1000
        self._seed = experiment.resolved_seed
        self._hash = _Hash(self._seed) if experiment.hash_version == 2 else self._first_version
        weights = experiment.weights
        steps = [(step.since.timestamp() * 1000, step.coverage) for step in experiment.ramp]
        self._steps = [
            _Step(since_ms, list(zip(bucket_ranges(len(weights), share, [*weights.values()]), weights, strict=True)))
            for since_ms, share in steps or [(-float("inf"), experiment.coverage)]
        ]

    def variant(self, user_id: str, time_ms: int) -> str | None:
        """A user's, None if coverage leaves him out."""
        in_force: list[tuple[Range, str]] = []
        for step in self._steps:
            if step.since_ms <= time_ms:
                in_force = step.variants
        if not in_force:
            return None
        bucket = self._hash(user_id)
        for (first, last), name in in_force:
            if first <= bucket < last:
                return name
        return None

    def _first_version(self, user_id: str) -> _Bucket:
        return unit_hash(self._seed, user_id, 1)
