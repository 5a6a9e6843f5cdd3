import pytest

from infnet.evaluation.evaluate import split_metrics
from infnet.training.config import TrainConfig
from small_dataset import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def evaluate(dataset):
    return split_metrics(dataset)


@pytest.fixture
def small_config():
    """A quick model with dropout on, three evaluations' worth of training."""

    def make(**changes):
        settings = {"width": 4, "dropout": 0.2, "hidden": [16], "head_hidden": [8]}
        values = {"model": "shared_bottom", "settings": settings, "epochs": 3, "batch_size": 64}
        values |= {"learning_rate": 0.01, "tensorboard": False, "log_every": 4, "threads": 1}
        return TrainConfig(**(values | changes))

    return make
