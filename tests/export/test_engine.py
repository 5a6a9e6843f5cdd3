import numpy as np
import pytest
from written_out import make_model

from infnet.export import engine as module
from infnet.export.engine import EncodedRequest
from infnet.models import INFNet, INFNetConfig, build_model
from random_batches import make_layout
from random_dataset import write_random_dataset

NUM_ROWS = 40


@pytest.fixture(scope="module", params=["infnet", "din"])
def compared(request, compare, tmp_path_factory):
    sides = ("user", "context", "item", "candidate")
    layout = make_layout(tags=True, dense=True, rich_sides=sides, lengths=(6, 4), gap=True, position=True)
    sizes = {"num_rows": NUM_ROWS, "num_users": 15, "max_events": 4}
    dataset = write_random_dataset(tmp_path_factory.mktemp("data"), layout, **sizes)
    if request.param == "infnet":
        return compare(make_model(INFNet, layout, INFNetConfig(width=8)).float(), dataset)
    return compare(build_model("din", layout, {"width": 8, "embedding_std": 1.0}), dataset)


@pytest.fixture
def pages():
    """Of very different sizes, each first row another's."""
    rng = np.random.default_rng(0)
    return [rng.permutation(NUM_ROWS)[:size] for size in (7, 1, 23, 0, 7, 2, 40, 8) if size]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def without_candidates(request):
    none = [part[:0] for part in request.candidate]
    return EncodedRequest(
        request.user,
        request.context,
        request.items[:0],
        type(request.candidate)(*none),
        request.histories,
        request.gaps,
    )


@pytest.mark.parametrize(("chunk", "few"), [(1, 64), (2, 64), (7, 7), (22, 5), (1000, 64), (1000, 0)])
def test_how_candidates_are_cut_into_chunks_changes_nothing(compared, pages, monkeypatch, chunk, few):
    requests = compared.requests(pages)
    runs, run = [], compared.engine.backend.run
    monkeypatch.setattr(compared.engine.backend, "run", lambda inputs: runs.append(inputs.fields) or run(inputs))
    for name, value in (("_CHUNK", chunk), ("_TOGETHER", chunk), ("_FEW", few)):
        monkeypatch.setattr(module, name, value)
    found = compared.engine.logits(requests)
    assert_same(found, [logits.numpy() for logits in compared.wanted(pages)])
    assert max(fields.shape[0] * fields.shape[1] for fields in runs) <= chunk
    assert_same([compared.engine.logits([request])[0] for request in requests], found)


def test_the_other_requests_and_their_order_change_nothing(compared, pages):
    requests = compared.requests(pages)
    together = compared.engine.logits(requests)
    shuffled = np.random.default_rng(1).permutation(len(pages))
    assert_same(compared.engine.logits([requests[i] for i in shuffled]), [together[i] for i in shuffled])
    assert_same(compared.engine.logits(requests[2:4]), together[2:4])


def test_a_request_without_candidates_has_no_scores_alone_or_among_others(compared, pages):
    requests = compared.requests(pages)
    nothing, num_tasks = without_candidates(requests[0]), len(compared.model.layout.tasks)
    wanted = compared.engine.logits(requests)
    assert compared.engine.logits([]) == []
    for asked, places in (([nothing], [0]), ([nothing] * 3, [0, 1, 2]), ([nothing, *requests, nothing], [0, -1])):
        found = compared.engine.logits(asked)
        assert all(found[place].shape == (0, num_tasks) for place in places)
        assert found[0].dtype == np.float32
    assert_same(found[1:-1], wanted)


def test_a_user_without_any_event_scores_finite_and_like_the_model(compared):
    rows, layout = compared.dataset.rows("train"), compared.model.layout
    starts = np.stack([history.starts[rows.user] for history in compared.dataset.histories], axis=1)
    newcomers = np.flatnonzero((rows.ends == starts).all(axis=1))
    assert len(newcomers)
    page = np.append(newcomers[0], np.arange(9))
    compared.assert_agree([page])
    compared.assert_agree([page, page])
    compared.assert_agree([page, np.arange(9)])
    logits = compared.engine.logits(compared.requests([page]))[0]
    assert logits.shape == (10, len(layout.tasks))
    assert np.isfinite(logits).all()


def test_an_item_scores_alike_wherever_it_stands_and_however_often(compared):
    page = np.arange(12)
    once, again = compared.requests([page, np.concatenate([page, page[::-1]])])
    logits = compared.engine.logits([once])[0]
    assert_same([compared.engine.logits([again])[0]], [np.concatenate([logits, logits[::-1]])])
    assert len(np.unique(logits[:, 0].round(4))) > 9
