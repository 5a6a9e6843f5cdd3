import pytest

from infnet import errors
from infnet.errors import did_you_mean


def test_a_near_miss_is_suggested_alone():
    assert did_you_mean("vidio_id", ["video_id", "author_id", "click"]) == "; did you mean 'video_id'?"


def test_the_nearest_of_several_near_misses_is_suggested():
    assert did_you_mean("user_ids", ["user_id", "user_idx_old", "users"]) == "; did you mean 'user_id'?"


def test_without_a_near_miss_all_known_names_are_listed_in_order():
    assert did_you_mean("zzz", {"number", "category", "id"}) == "; known are: category, id, number"


def test_without_known_names_there_is_nothing_to_suggest():
    assert did_you_mean("click", []) == ""


def test_names_may_come_from_any_iterable():
    assert did_you_mean("clik", (name for name in ("click", "like"))) == "; did you mean 'click'?"


@pytest.mark.parametrize("name", ["SpecError", "DataError", "ArtifactError"])
def test_what_the_caller_can_mend_is_an_input_error(name):
    assert issubclass(getattr(errors, name), errors.InputError)


def test_failed_training_is_not_the_callers_to_mend():
    assert issubclass(errors.TrainingError, errors.InfnetError)
    assert not issubclass(errors.TrainingError, errors.InputError)


def test_every_error_of_the_package_has_the_one_base_and_keeps_its_message():
    for name in errors.__all__:
        error = getattr(errors, name)
        if isinstance(error, type):
            assert issubclass(error, errors.InfnetError)
            assert str(error("log.csv, line 3: what to do")) == "log.csv, line 3: what to do"
