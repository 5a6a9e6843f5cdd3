import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infnet.errors import SpecError
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from small_bundle import NEWCOMER, NUM_ITEMS, predicted, requests_of_log


@pytest.fixture(scope="session", params=["onnx", "torch"])
def backend(request):
    return request.param


@pytest.fixture(scope="session")
def ranker(bundle, backend):
    return Ranker(bundle, backend=backend)


@pytest.fixture(scope="session")
def requests(dataset):
    """Of the log's validation rows, one candidate each."""
    return requests_of_log(dataset, "valid")


@pytest.fixture(scope="session")
def many(requests):
    """Requests of different users and numbers of candidates."""
    rng = np.random.default_rng(0)

    def widened(request, num):
        rows = rng.integers(0, len(requests), num)
        names = request.candidate_values
        values = {name: [requests[row].candidate_values[name][0] for row in rows] for name in names}
        return dataclasses.replace(
            request, candidates=[requests[row].candidates[0] for row in rows], candidate_values=values
        )

    return [widened(request, 1 + i * 3 % 17) for i, request in enumerate(requests[:60])]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-6)


def test_raw_values_of_the_log_give_what_the_model_predicts_at_that_time(ranker, run, dataset, requests):
    wanted = predicted(run, dataset, dataset.rows("valid"))
    assert len(np.unique(wanted[:, 0].round(5))) > 100
    assert_same(ranker.score_many(requests), wanted[:, None])


def test_scoring_together_is_scoring_one_by_one(ranker, many):
    alone = [
        ranker.score(r.user, r.candidates, context=r.context, candidate_values=r.candidate_values, time_ms=r.time_ms)
        for r in many
    ]
    assert_same(ranker.score_many(many), alone)
    assert ranker.score_many([]) == []


def test_threads_score_what_one_does(ranker, backend, many):
    wanted = [ranker.score_many([request])[0] for request in many]
    fresh = Ranker(ranker.bundle, backend=backend)  # that remembers nothing yet
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda request: fresh.score_many([request])[0], many * 4)]
    assert_same(found, wanted * 4)


def test_every_task_of_every_candidate_is_scored_in_the_callers_order(ranker, many):
    request = next(r for r in many if len(r.candidates) > 9)
    scores, backwards = ranker.score_many([request, reverse(request)])
    assert scores.shape == (len(request.candidates), len(ranker.tasks)) == (len(request.candidates), 3)
    assert ranker.tasks == ("click", "like", "watch")
    assert ((scores[:, :2] > 0) & (scores[:, :2] < 1)).all()
    assert_same([backwards], [scores[::-1]])


def reverse(request):
    values = {name: list(values)[::-1] for name, values in request.candidate_values.items()}
    return dataclasses.replace(request, candidates=list(request.candidates)[::-1], candidate_values=values)


def test_a_key_is_one_item_as_number_and_as_text(ranker):
    numbers = [7, 3, 12, 999]
    wanted = ranker.score("u3", numbers, time_ms=0)
    spellings = ([str(key) for key in numbers], np.array(numbers), [float(key) for key in numbers])
    for same in (*spellings, ["7", 3, 12.0, "nothing"]):
        assert_same([ranker.score("u3", same, time_ms=0)], [wanted])
    assert len(np.unique(wanted[:, 0])) == 4


def test_strangers_score_as_the_entity_that_nobody_knows(ranker, run, dataset, requests):
    rows, nobody = dataset.rows("valid"), {"user": np.zeros_like(dataset.rows("valid").user)}
    nobody["ends"] = np.zeros_like(rows.ends)
    wanted = predicted(run, dataset, dataclasses.replace(rows, **nobody))
    assert_same(ranker.score_many([dataclasses.replace(r, user="nobody") for r in requests]), wanted[:, None])
    candidate = rows.candidate.copy()
    candidate[:, dataset.layout.id_columns("candidate")["item_age"]] = ranker.bundle.encoder.missing("item_age")
    wanted = predicted(run, dataset, dataclasses.replace(rows, item=np.zeros_like(rows.item), candidate=candidate))
    unknown = ["never seen", 10**12, "041", 0, -1]
    asked = [dataclasses.replace(r, candidates=[unknown[i % 5]]) for i, r in enumerate(requests)]
    assert_same(ranker.score_many(asked), wanted[:, None])


def test_no_candidates_have_no_scores(ranker):
    assert ranker.score("u3", []).shape == (0, 3)
    assert ranker.score("u3", [], candidate_values={"rank": [], "reasons": [], "bid": []}).shape == (0, 3)
    assert ranker.rank(RankRequest("u3", [])) == []


def test_the_best_come_first_by_the_task_that_is_asked_for(ranker, many):
    request = max(many, key=lambda r: len(set(r.candidates)))
    scores = ranker.score_many([request])[0]
    for column, task in enumerate(ranker.tasks):
        ranked = ranker.rank(request, by=task)
        assert sorted(item.item_id for item in ranked) == sorted(str(key) for key in request.candidates)
        assert [item.score for item in ranked] == sorted(scores[:, column].tolist(), reverse=True)
        assert all(item.tasks[task] == item.score and list(item.tasks) == list(ranker.tasks) for item in ranked)
    assert ranker.rank(request) == ranker.rank(request, by="click")


def test_equal_scores_keep_the_order_they_came_in(ranker):
    keys = [f"unknown{i}" for i in range(20)]
    request = RankRequest(NEWCOMER, [*keys[:10], 5, *keys[10:]], time_ms=0)
    ranked = [item.item_id for item in ranker.rank(request)]
    assert [key for key in ranked if key != "5"] == keys


def test_a_task_that_is_not_there_is_named(ranker):
    with pytest.raises(SpecError, match="no task is called 'clik'; did you mean 'click'"):
        ranker.rank(RankRequest("u3", [1]), by="clik")


def test_a_backend_that_is_not_there_is_named(bundle):
    with pytest.raises(SpecError, match="backend is 'tensorrt', wanted onnx or torch"):
        Ranker(bundle, backend="tensorrt")


def test_the_time_of_a_request_is_now_unless_it_says(ranker, monkeypatch):
    at = 1_651_500_000_000
    monkeypatch.setattr("infnet.serving.encoding.time.time_ns", lambda: at * 1_000_000)
    assert_same([ranker.score("u3", [1, 2])], [ranker.score("u3", [1, 2], time_ms=at)])
    assert not np.allclose(ranker.score("u3", [1, 2]), ranker.score("u3", [1, 2], time_ms=at - 7_200_000), atol=1e-7)


def test_items_of_the_catalogue_are_told_apart(ranker):
    scores = ranker.score("u3", range(1, NUM_ITEMS + 1), time_ms=1_651_500_000_000)
    assert len(np.unique(scores[:, 0].round(6))) > NUM_ITEMS * 0.9
