import polars as pl
import pytest
import torch
from sample_partitions import log_samples, write_part

from infnet.export.catalogue import Catalogue
from infnet.export.exporter import export_run
from infnet.export.learning import WAITING_SCHEMA, LearningState, last_seen
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from infnet.training.state import TrainState
from infnet.updating.guard import GuardSettings
from infnet.updating.update import UpdateSettings
from small_bundle import SETTINGS, graphs_of


@pytest.fixture(scope="session")
def log(dataset):
    """Requests and samples of the days after training, in order of time."""
    return log_samples(dataset, "valid")


@pytest.fixture(scope="session")
def samples(log, tmp_path_factory):
    """Two partitions; not to be changed."""
    directory = tmp_path_factory.mktemp("samples")
    write_part(directory, 1, log[:96])
    return write_part(directory, 2, log[96:192])


@pytest.fixture
def accept():
    """Settings under which so few rows are no reason to refuse."""
    return UpdateSettings(guard=GuardSettings(when_unsure="accept"))


@pytest.fixture(scope="session")
def plain(bundle, dataset, tmp_path_factory):
    """A bundle without dropout, whose run took batches of 32 rows."""
    settings = {"embedding_std": 1.0, "dropout": 0.0} | SETTINGS["infnet"]
    config = TrainConfig(settings=settings, batch_size=32, learning_rate=0.01, embedding_learning_rate=0.02)
    run = Run.create(tmp_path_factory.mktemp("runs") / "plain", dataset, config)
    torch.manual_seed(1)
    state = TrainState.begin(dataset.layout, config, torch.device("cpu"))
    run.save_best(state.model, {})
    state.save(run.last_path)
    run.write_report({"metrics": {}})
    with graphs_of(bundle):
        return export_run(run, tmp_path_factory.mktemp("bundles") / "plain")


@pytest.fixture
def catalogue(dataset):
    """Of the dataset itself, without a model."""
    return Catalogue.of_dataset(dataset)


@pytest.fixture
def learning(dataset):
    """As a run on the dataset would leave it, without parameters."""
    return LearningState(TrainConfig(), {}, last_seen(dataset), pl.DataFrame(schema=WAITING_SCHEMA))
