import gc
import os

# As many test processes as cores, or more: a second thread of each would wait for the other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from infnet.data.dataset import Dataset
from infnet.export.exporter import export_run
from redis_server import RedisServer
from small_bundle import graphs_of, small_bundle, small_run

# How long an example takes says more of the machine than of the code.
settings.register_profile("infnet", deadline=None)
settings.load_profile("infnet")


def pytest_collection_modifyitems(items):
    """What takes long and mostly waits comes first, so that no process is left alone with it."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return small_run(tmp_path_factory)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def without_pauses(bundle):
    """As in a service, the collector does not look through what is there already: it takes longer than a deadline."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def other_bundle(bundle, run, tmp_path_factory):
    """Of the same run, in bfloat16."""
    with graphs_of(bundle):
        return export_run(run, tmp_path_factory.mktemp("bundles") / "bf16", precision="bf16")


@pytest.fixture(scope="session")
def dataset(run):
    return Dataset.open(run.dataset_path)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()
