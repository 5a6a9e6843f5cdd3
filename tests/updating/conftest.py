import pytest
from sample_partitions import log_samples, write_part

from infnet.updating.guard import GuardSettings
from infnet.updating.update import UpdateSettings


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
