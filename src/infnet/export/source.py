"""What a bundle is made from: a run with its dataset, or an older bundle that has learnt more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.data.dataset import Dataset
from infnet.errors import SpecError
from infnet.evaluation.evaluate import open_dataset_of
from infnet.export.bundle import serving_network
from infnet.export.catalogue import Catalogue
from infnet.export.learning import LearningState, item_counts
from infnet.export.manifest import Lineage
from infnet.models.base import RankingModel
from infnet.training.run import Run

__all__ = ["BundleSource"]


@dataclass(frozen=True)
class BundleSource:
    """What a bundle is made from."""

    origin: Path
    """Run or bundle, for messages."""
    name: str
    fingerprint: str
    run: Mapping[str, Any]
    trained_to_ms: int
    lineage: Lineage
    """These as in :class:`BundleManifest`."""
    model: RankingModel
    """In evaluation mode."""
    catalogue: Catalogue
    """Its items are the model's; of its histories the last events are kept."""
    counts: NDArray[np.int64]
    """Of the items (:func:`item_counts`)."""
    learning: LearningState | None
    """None for a bundle that cannot be updated."""
    judge: Dataset
    """With the catalogue's items: the bundle has to agree with the model on its rows."""
    split: str
    """Of ``judge``."""

    @classmethod
    def of_run(cls, run: Run, data: Path | None = None, *, checkpoint: bool = True) -> BundleSource:
        """The best checkpoint of a run, with all users and items of its dataset.

        Args:
            run: The run.
            data: Where its dataset is now; where it was by default.
            checkpoint: Carry along what training needs to go on.

        Raises:
            SpecError: The model cannot be exported.
            ArtifactError: Run or dataset is missing or damaged.
        """
        dataset, model = open_dataset_of(run, data), run.load_model()
        serving_network(model, padded=False)  # says no before any work
        split = next((name for name in ("valid", "test", "train") if dataset.manifest.splits.get(name)), None)
        if split is None:
            raise SpecError(f"{dataset.path}: has no rows to check the bundle with")
        about = {key: run.about.get(key) for key in ("seed", "versions")}
        return cls(
            origin=run.path,
            name=dataset.manifest.name,
            fingerprint=run.about["fingerprint"],
            run=about | {"valid": run.report["metrics"]},
            trained_to_ms=int(dataset.rows("train").time.max(initial=0)),
            lineage=Lineage(),
            model=model,
            catalogue=Catalogue.of_dataset(dataset),
            counts=item_counts(dataset),
            learning=LearningState.of_run(run, dataset) if checkpoint else None,
            judge=dataset,
            split=split,
        )
