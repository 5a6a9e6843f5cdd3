"""What a request is answered with: the service's own model and policy, or those of a variant of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from infnet.errors import SpecError
from infnet.experiments.assignment import Assigner
from infnet.experiments.reading import load_experiments
from infnet.experiments.spec import Experiment, ExperimentsSpec
from infnet.ranking.ads.sales import AdSales
from infnet.serving.live import LiveModel, ModelHolder
from infnet.serving.policy_file import PolicyFile
from infnet.serving.settings import ServeSettings

__all__ = ["Arm", "Arms", "Assigned"]


class Arm(NamedTuple):
    """A way of answering."""

    holder: ModelHolder
    policy: PolicyFile | None
    """None orders by one task's prediction."""


class Assigned(NamedTuple):
    """What a user's requests are answered with."""

    arm: Arm
    experiments: Mapping[str, str]
    """Variant by experiment, of those that the user is in."""


class Arms:
    """Says who is answered with what; safe to use from several threads.

    Attributes:
        experiments: Names of those declared.
        counted: Types of events that their metrics count.

    Args:
        default: For whoever is in no variant that has a bundle or a policy of its own.
        spec: The experiments.
        variants: Arms of variants that have one of their own, by experiment and variant.
    """

    def __init__(
        self,
        default: Arm,
        spec: ExperimentsSpec | None = None,
        variants: Mapping[tuple[str, str], Arm] | None = None,
    ) -> None:
        self.default, self._variants = default, dict(variants or {})
        self.experiments: tuple[str, ...] = () if spec is None else tuple(spec.names)
        metrics = [] if spec is None else [metric for each in spec.experiments for metric in each.metrics]
        measures = [measure for metric in metrics for measure in metric.measures if measure.is_of_events]
        self.counted = frozenset(measure.event for measure in measures)
        self._assigner = None if spec is None else Assigner(spec)

    @classmethod
    def open(cls, settings: ServeSettings) -> Arms:
        """Load every model and every policy that settings and experiments name.

        Raises:
            ArtifactError: A model cannot be served.
            SpecError: A policy or the experiments cannot be used, or a model lacks the task of ``settings.by`` or, of
                a variant, reads behaviours that the service's own does not.
        """
        holders: dict[Path, ModelHolder] = {}
        policies: dict[tuple[Path, Path], PolicyFile] = {}

        def arm(bundle: Path, policy: Path | None) -> Arm:
            if bundle not in holders:
                holder = holders[bundle] = ModelHolder(bundle, backend=settings.backend)
                if settings.by is not None:
                    holder.live.check_task(settings.by)
                _check_behaviours(bundle, holder.live, holders[settings.model].live)
            if policy is not None and (bundle, policy) not in policies:
                policies[bundle, policy] = PolicyFile(policy, holders[bundle])
            return Arm(holders[bundle], None if policy is None else policies[bundle, policy])

        default = arm(settings.model, settings.policy)
        if settings.experiments is None:
            return cls(default)
        spec, place = load_experiments(settings.experiments), settings.experiments.parent
        _check_layers(spec, settings.experiments)
        variants = {
            (experiment.name, variant.name): arm(
                settings.model if variant.bundle is None else place / variant.bundle,
                settings.policy if variant.policy is None else place / variant.policy,
            )
            for experiment in spec.experiments
            for variant in experiment.variants
            if variant.bundle is not None or variant.policy is not None
        }
        return cls(default, spec, variants)

    def of(self, user: str, time_ms: int) -> Assigned:
        """What a user's request is answered with, at a time in ms since 1970."""
        if self._assigner is None:
            return Assigned(self.default, {})
        experiments = self._assigner.assign(user, time_ms)
        for each in experiments.items():
            if each in self._variants:
                return Assigned(self._variants[each], experiments)
        return Assigned(self.default, experiments)

    @property
    def all(self) -> Iterator[Arm]:
        """Every one, the default first."""
        yield self.default
        yield from self._variants.values()

    @property
    def holders(self) -> list[ModelHolder]:
        """Each once, the default's first."""
        return list({id(arm.holder): arm.holder for arm in self.all}.values())

    @property
    def policies(self) -> list[PolicyFile]:
        """Each once, the default's first."""
        return list({id(arm.policy): arm.policy for arm in self.all if arm.policy is not None}.values())

    @property
    def ads(self) -> list[AdSales]:
        """Of the policies that sell ads."""
        return [policy.live.ads for policy in self.policies if policy.live.ads is not None]

    @property
    def item_fields(self) -> frozenset[str]:
        """Fields of candidates that any policy reads."""
        return frozenset(field for policy in self.policies for field in policy.live.item_fields)

    @property
    def request_fields(self) -> frozenset[str]:
        """Fields of requests that any policy reads."""
        return frozenset(field for policy in self.policies for field in policy.live.request_fields)

    def watch(self) -> None:
        """Begin to look for other models and policies."""
        for holder in self.holders:
            holder.watch()
        for policy in self.policies:
            policy.watch()

    def close(self) -> None:
        """End watching."""
        for holder in self.holders:
            holder.close()
        for policy in self.policies:
            policy.close()


def _check_layers(spec: ExperimentsSpec, path: Path) -> None:
    """A user is answered with one arm: experiments that change it exclude each other."""
    changing = [experiment for experiment in spec.experiments if _changes_arm(experiment)]
    for one in changing[1:]:
        first = changing[0]
        if one.layer != first.layer:
            raise SpecError(
                f"{path}: '{first.name}' of layer '{first.layer}' and '{one.name}' of layer '{one.layer}' both give "
                "variants a policy or a bundle, and a user may be in both; put them into one layer"
            )


def _check_behaviours(path: Path, model: LiveModel, own: LiveModel) -> None:
    """Histories are kept of the behaviours of the service's own model."""
    for name in model.delays_ms:
        if name not in own.delays_ms:
            raise SpecError(
                f"{path}: reads the behaviour '{name}', of which the service's own model keeps no history; "
                "take a bundle of the same dataset spec"
            )


def _changes_arm(experiment: Experiment) -> bool:
    return any(variant.policy is not None or variant.bundle is not None for variant in experiment.variants)
