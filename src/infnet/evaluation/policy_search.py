"""Weights by evidence: the Pareto front over rewards that a policy's weights can reach, and the best under limits.

The front is searched by NSGA-II (Deb, Pratap, Agarwal & Meyarivan, "A Fast and Elitist Multiobjective Genetic
Algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6, 2002) or TPE, as implemented by Optuna (Akiba et
al., KDD 2019). Half of the users choose and the others report, so that what is told of a choice is not the luck that it
was chosen for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError, SpecError
from infnet.evaluation.policy_evidence import Evidence
from infnet.evaluation.policy_frontier import PolicyFrontier, WeightTrial
from infnet.ranking.frontier import best_kept, knee, pareto
from infnet.ranking.weight_space import WeightSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["Sampler", "check_search", "search_frontier"]

Sampler: TypeAlias = Literal["nsga2", "tpe"]

_Exponents: TypeAlias = Mapping[str, float]

_SEEDS = 10
"""Points of the front that the search under limits begins with."""


def check_search() -> None:
    """See that weights can be searched, before there is much work to lose.

    Raises:
        SpecError: Optuna is not installed.
    """
    try:
        import_module("optuna")
    except ImportError as error:
        raise SpecError("weights are searched by Optuna, which is not here: pip install 'infnet[tune]'") from error


def search_frontier(
    evidence: Evidence,
    space: WeightSpace,
    *,
    limits: Mapping[str, float] | None = None,
    trials: int = 200,
    sampler: Sampler = "nsga2",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PolicyFrontier:
    """Search the weights of a policy; the same arguments give the same result.

    Args:
        evidence: What weights are judged by.
        space: Weights to search; trial 0 takes the declared ones.
        limits: By reward the least change that is wanted. The first reward without one is raised under them, in half
            as many trials again.
        trials: Weights to try for the front.
        sampler: What proposes weights.
        seed: Of the search, and of who chooses.
        progress: Called after every trial with the number of trials done.

    Raises:
        SpecError: There are fewer than two rewards, or Optuna is not installed.
        DataError: The declared policy earns nothing of a reward among those who choose or report.
    """
    rewards, limits = tuple(evidence.rewards), dict(limits or {})
    if len(rewards) < 2:
        raise SpecError(f"--objectives: '{', '.join(rewards)}' is a single one; wanted two or more, such as click,like")
    check_search()
    judge = _Judge(evidence, space, seed, progress or (lambda _: None))
    of_all = _study(sampler, seed, trials, len(rewards))
    _run(of_all, space, judge, space.corners(), trials, lambda trial: (trial.chosen, {}))
    goal = next(index for index, name in enumerate(rewards) if name not in limits)
    bounds = {rewards.index(name): least for name, least in limits.items()}
    front = pareto(judge.points)
    if not len(front):
        raise DataError(f"no weights can be judged by {evidence.about}: nothing stands where they would have it")
    if limits and trials > 1:
        of_goal = _study(sampler, seed + 1, trials // 2, 1)

        def missed(trial: WeightTrial) -> dict[str, float]:
            return {rewards[index]: least - trial.chosen[index] for index, least in bounds.items()}

        nearest = sorted(
            (judge.trials[place] for place in front),
            key=lambda trial: (max(0.0, *missed(trial).values()), -trial.chosen[goal]),
        )
        begin = [trial.exponents for trial in nearest[:_SEEDS]]
        _run(of_goal, space, judge, begin, trials // 2, lambda trial: ((trial.chosen[goal],), missed(trial)))
        front = pareto(judge.points)
    points = judge.points[front]
    at_knee = knee(points)
    kept = best_kept(points, goal, bounds) if limits else None
    return PolicyFrontier(
        about=evidence.about,
        is_sampled=evidence.is_sampled,
        rewards=rewards,
        weighed=space.names,
        fixed=space.fixed,
        trials=tuple(judge.trials),
        front=tuple(front.tolist()),
        knee=None if at_knee is None else int(front[at_knee]),
        goal=rewards[goal],
        limits=limits,
        kept=None if kept is None else int(front[kept]),
        choosing=int(judge.chooses.sum()),
        reporting=int((~judge.chooses).sum()),
    )


class _Judge:
    """Tries weights, and remembers them."""

    def __init__(self, evidence: Evidence, space: WeightSpace, seed: int, progress: Callable[[int], None]) -> None:
        self._evidence, self._space, self._progress = evidence, space, progress
        num = evidence.num_users
        self.chooses = np.random.default_rng(seed).permutation(num) < (num + 1) // 2
        self.trials: list[WeightTrial] = []
        self._known: dict[tuple[float, ...], WeightTrial] = {}
        self._declared = evidence.earned(space.weights(space.declared))
        for who, do in ((self.chooses, "choose"), (~self.chooses, "report")):
            for name, mean in zip(evidence.rewards, self._declared.of(who).means(), strict=True):
                if not mean > 0:
                    raise DataError(
                        f"the declared policy earns {mean:g} of '{name}' among the users who {do}, wanted more than 0 "
                        "to compare with; give more rows or pages, or another objective"
                    )

    @property
    def points(self) -> NDArray[np.float64]:
        """(n, M) changes among those who choose."""
        return np.array([trial.chosen for trial in self.trials])

    def __call__(self, exponents: _Exponents) -> WeightTrial:
        weights = self._space.weights(exponents)
        key = tuple(weights.tolist())
        known = self._known.get(key)
        if known is None:
            earned = self._evidence.earned(weights)
            chosen, reported = (earned.of(who).beside(self._declared.of(who)) for who in (self.chooses, ~self.chooses))
            effective = earned.of(~self.chooses).effective
            known = WeightTrial(exponents, key, tuple(each.value for each in chosen), reported, effective)
            self._known[key] = known
        self.trials.append(known)
        self._progress(len(self.trials))
        return known


def _run(
    study: optuna.Study,
    space: WeightSpace,
    judge: _Judge,
    begin: Sequence[_Exponents],
    trials: int,
    outcome: Callable[[WeightTrial], tuple[Sequence[float], Mapping[str, float]]],
) -> None:
    """Try weights, first those to begin with; an outcome is values to raise, and by how much limits are missed."""
    import optuna

    for exponents in begin:
        study.enqueue_trial(dict(exponents))
    for _ in range(trials):
        asked = study.ask()
        tried = judge({name: asked.suggest_float(name, space.lowest, space.highest) for name in space.free})
        if not np.isfinite(tried.chosen).all():
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        values, missed = outcome(tried)
        for name, by in missed.items():
            asked.set_constraint(name, by)
        study.tell(asked, list(values))


def _study(sampler: Sampler, seed: int, trials: int, num_values: int) -> optuna.Study:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        chosen: optuna.samplers.BaseSampler
        if sampler == "nsga2":
            chosen = optuna.samplers.NSGAIISampler(population_size=max(4, min(50, trials // 5)), seed=seed)
        else:
            chosen = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=False)
        return optuna.create_study(directions=["maximize"] * num_values, sampler=chosen)
    finally:
        optuna.logging.set_verbosity(verbosity)
