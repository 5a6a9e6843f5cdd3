import pytest
import torch

from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from small_dataset import write_dataset


@pytest.fixture(scope="module")
def untrained_run(tmp_path_factory):
    """Of a model with random parameters, whose dataset has rows that were shown at random."""
    directory = tmp_path_factory.mktemp("untrained")
    dataset = write_dataset(directory / "data", {"valid": 50, "test": 300, "random": 300})
    config = TrainConfig(model="shared_bottom")
    run = Run.create(directory / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run
