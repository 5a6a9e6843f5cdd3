import pytest

from infnet.training.schedule import Schedule


def test_warm_up_grows_in_equal_steps_to_the_full_rate():
    schedule = Schedule("constant", warmup_steps=4, total_steps=100)
    assert [schedule.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Schedule("constant", 0, 10).factor(0) == 1.0
    assert Schedule("cosine", 0, 10).factor(0) == 1.0


def test_cosine_starts_after_warm_up_passes_one_half_midway_and_ends_at_zero():
    schedule = Schedule("cosine", warmup_steps=10, total_steps=110)
    assert schedule.factor(9) == 1.0
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.5)
    assert schedule.factor(110) == pytest.approx(0.0)
    assert schedule.factor(500) == pytest.approx(0.0)


def test_a_warm_up_longer_than_the_run_is_still_a_warm_up():
    schedule = Schedule("cosine", warmup_steps=10, total_steps=5)
    assert schedule.factor(4) == 0.5
