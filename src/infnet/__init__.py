"""INFNet: a task-aware information flow network, as a complete ranking system."""

import os

__version__ = "0.1.0"

# OpenMP reads it when PyTorch is loaded, so before any other import: threads that wait for each other sleep, where they
# would spin on cores that a service, an update or another run beside them could use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from infnet.api import evaluate, prepare, train, tune
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.errors import InfnetError, InputError
from infnet.evaluation.ablation import ablate
from infnet.evaluation.benchmark import benchmark
from infnet.export.bundle import Bundle
from infnet.export.exporter import export_run
from infnet.models import INFNetConfig, build_model
from infnet.schema import DatasetSpec, load_spec
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from infnet.training.config import TrainConfig
from infnet.training.run import Run

__all__ = [
    "Bundle",
    "Dataset",
    "DatasetSpec",
    "INFNetConfig",
    "InfnetError",
    "InputError",
    "RankRequest",
    "Ranker",
    "Run",
    "TrainConfig",
    "ablate",
    "benchmark",
    "build_model",
    "evaluate",
    "export_run",
    "known_spec",
    "load_spec",
    "prepare",
    "train",
    "tune",
]
