import msgspec
import numpy as np
import pytest

from infnet.schema import Task
from infnet.serving.events import Event, Served
from infnet.serving.exposure import ExposureMemory
from infnet.serving.metrics import ServiceMetrics
from service_parts import count, running

TASKS = (
    Task(name="click", label="click"),
    Task(name="like", label="like", event="heart"),
    Task(name="watch", label="watch", kind="regression"),
)
PREDICTED = np.array([[0.25, 0.5, 10.0], [0.75, 0.125, -2.0]])
"""Of the items a and b."""


@pytest.fixture
def metrics():
    return ServiceMetrics()


@pytest.fixture
def memory(metrics):
    memory = ExposureMemory(metrics)
    memory.served("r", "u", ["a", "b"], PREDICTED, TASKS)
    return memory


def happened(memory, kind, item="a", request_id="r", value=1.0):
    event = Event(event_id="any", request_id=request_id, item_id=item, type=kind, time_ms=1, value=value, received_ms=1)
    memory.happened(event)


def expected(metrics):
    return [count(metrics, "infnet_expected_total", task=task.name) for task in TASKS]


def observed(metrics):
    return [count(metrics, "infnet_observed_total", task=task.name) for task in TASKS]


def test_predictions_are_summed_over_impressions_and_each_item_of_a_request_is_one(memory, metrics):
    happened(memory, "impression", "b")
    assert expected(metrics) == [0.75, 0.125, 0.0]  # nobody watches for less than no time
    for _ in range(3):
        happened(memory, "impression", "a")
        happened(memory, "impression", "b")
    assert expected(metrics) == [1.0, 0.625, 10.0]
    memory.served("r2", "u", ["a"], PREDICTED[:1], TASKS)
    happened(memory, "impression", "a", "r2")
    assert expected(metrics) == [1.25, 1.125, 20.0]


def test_labels_are_summed_by_the_event_types_of_their_tasks_once_each(memory, metrics):
    happened(memory, "impression")
    for kind, value in (
        ("click", 1.0),
        ("click", 1.0),
        ("heart", 7.0),
        ("like", 1.0),
        ("watch", 12.5),
        ("watch", 99.0),
    ):
        happened(memory, kind, value=value)
    assert observed(metrics) == [1.0, 1.0, 12.5]


def test_a_value_of_0_says_that_it_did_not_happen(memory, metrics):
    happened(memory, "impression")
    for kind in ("click", "heart", "watch"):
        happened(memory, kind, value=0.0)
    assert observed(metrics) == [0.0, 0.0, 0.0]
    happened(memory, "click")
    assert observed(metrics) == [1.0, 0.0, 0.0]


def test_an_impression_of_value_0_did_not_happen(memory, metrics):
    happened(memory, "impression", value=0.0)
    assert expected(metrics) == [0.0, 0.0, 0.0]


def test_labels_of_items_without_an_impression_are_not_counted(memory, metrics):
    happened(memory, "impression", "b")
    happened(memory, "click", "a")
    assert observed(metrics) == [0.0, 0.0, 0.0]


def test_in_a_calibrated_model_predictions_and_labels_agree(metrics):
    rng, memory = np.random.default_rng(0), ExposureMemory(metrics)
    for number in range(400):
        probs = rng.uniform(0.05, 0.6, (5, 1))
        items = [f"{item}" for item in range(5)]
        memory.served(f"r{number}", "u", items, probs, TASKS[:1])
        for item, prob in zip(items, probs[:, 0], strict=True):
            happened(memory, "impression", item, f"r{number}")
            if rng.random() < prob:
                happened(memory, "click", item, f"r{number}")
    assert observed(metrics)[0] == pytest.approx(expected(metrics)[0], rel=0.05)


def test_events_of_other_requests_and_items_count_nowhere(memory, metrics):
    for kind in ("impression", "click"):
        happened(memory, kind, "c")
        happened(memory, kind, "a", "other")
    assert expected(metrics) == observed(metrics) == [0.0, 0.0, 0.0]


def test_whose_request_it_was_is_known_while_it_is_remembered(metrics):
    memory = ExposureMemory(metrics, limit=3)
    for number in range(4):
        memory.served(f"r{number}", f"u{number}", ["a"], PREDICTED[:1], TASKS)
    assert [memory.user_of(f"r{number}") for number in range(5)] == [None, "u1", "u2", "u3", None]
    happened(memory, "impression", "a", "r0")
    assert expected(metrics) == [0.0, 0.0, 0.0]
    happened(memory, "impression", "a", "r3")
    assert expected(metrics) == [0.25, 0.5, 10.0]


def a_request(request_id, user="u", **predictions):
    num = max(map(len, predictions.values()), default=0)
    return Served(
        request_id=request_id,
        user_id=user,
        time_ms=1,
        received_ms=1,
        version="v",
        context={},
        user=None,
        histories={},
        items=["a", "b"][:num],
        values={},
        predictions=predictions,
        scores=[0.0] * num,
        degraded=[],
    )


def test_answers_of_an_earlier_life_count_like_those_of_this_one(metrics):
    memory = ExposureMemory(metrics)
    memory.recall([a_request("r1", "ada", click=[0.25, 0.75], like=[0.5, 0.125], watch=[10.0, 3.0])], TASKS)
    assert memory.user_of("r1") == "ada"
    happened(memory, "impression", "b", "r1")
    happened(memory, "click", "b", "r1")
    assert expected(metrics) == [0.75, 0.125, 3.0]
    assert observed(metrics) == [1.0, 0.0, 0.0]


def test_answers_of_a_model_with_other_tasks_do_not_count(metrics):
    memory = ExposureMemory(metrics)
    memory.recall([a_request("r1", click=[0.25]), a_request("r2", click=[0.5], like=[0.5], watch=[1.0])], TASKS)
    for request_id in ("r1", "r2"):
        happened(memory, "impression", "a", request_id)
    assert expected(metrics) == [0.5, 0.5, 1.0]


def test_segments_of_calibration_are_told_apart(metrics):
    memory = ExposureMemory(metrics)
    memory.served("r1", "u", ["a", "b"], PREDICTED, TASKS, segment="evening")
    memory.served("r2", "u", ["a"], PREDICTED[:1], TASKS, segment="other")
    memory.recall(
        [msgspec.structs.replace(a_request("r3", click=[0.5], like=[0.5], watch=[1.0]), segment="other")], TASKS
    )
    for request_id in ("r1", "r2", "r3"):
        happened(memory, "impression", "a", request_id)
    happened(memory, "click", "a", "r1")
    happened(memory, "heart", "a", "r3")
    assert expected(metrics) == [1.0, 1.5, 21.0]
    told = {
        (name, segment): count(metrics, f"infnet_{name}_total", task="click", segment=segment)
        for name in ("expected", "observed")
        for segment in ("evening", "other")
    }
    assert told == {
        ("expected", "evening"): 0.25,
        ("expected", "other"): 0.75,
        ("observed", "evening"): 1.0,
        ("observed", "other"): 0.0,
    }


def test_an_answer_of_an_earlier_life_without_a_model_is_known_by_its_user(metrics):
    memory = ExposureMemory(metrics)
    memory.recall([a_request("r1", "ada")], TASKS)
    happened(memory, "impression", "a", "r1")
    assert memory.user_of("r1") == "ada"
    assert expected(metrics) == observed(metrics) == [0.0, 0.0, 0.0]


def test_an_answer_without_a_model_counts_nowhere_and_it_is_known_whose_it_was(metrics):
    memory = ExposureMemory(metrics)
    memory.asked("r1", "ada")
    happened(memory, "impression", "a", "r1")
    happened(memory, "click", "a", "r1")
    assert memory.user_of("r1") == "ada"
    assert expected(metrics) == observed(metrics) == [0.0, 0.0, 0.0]


def test_a_label_that_comes_before_its_impression_counts_with_it(memory, metrics):
    happened(memory, "click")
    assert observed(metrics) == [0.0, 0.0, 0.0]
    happened(memory, "impression")
    assert observed(metrics) == [1.0, 0.0, 0.0]
    happened(memory, "click")
    assert observed(metrics) == [1.0, 0.0, 0.0]


def test_the_same_event_told_to_several_threads_at_once_counts_once(memory, metrics):
    def tell():
        for number in range(200):
            happened(memory, "impression", "a", f"s{number}")
            happened(memory, "click", "a", f"s{number}")

    for number in range(200):
        memory.served(f"s{number}", "u", ["a"], PREDICTED[:1], TASKS)
    with running(*[tell] * 4):
        pass
    assert expected(metrics)[0] == 200 * 0.25
    assert observed(metrics)[0] == 200
