import numpy as np
import pytest

from infnet.errors import ArtifactError, DataError, SpecError
from infnet.evaluation import calibrators
from infnet.evaluation.predict import predict
from infnet.export.bundle import Bundle
from infnet.export.calibration import BundleCalibration, CalibrationSettings, calibrate
from infnet.export.exporter import export_run
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from service_parts import Parts, count
from small_bundle import graphs_of, predicted, requests_of_log


@pytest.fixture
def few_are_enough(monkeypatch):
    monkeypatch.setattr(calibrators, "_LEAST_ROWS", 30)
    monkeypatch.setattr(calibrators, "_LEAST_POSITIVES", 5)


@pytest.fixture
def exported(run, bundle, tmp_path, few_are_enough):
    with graphs_of(bundle):
        return export_run(run, tmp_path / "out", calibration=CalibrationSettings(method="isotonic", by="tab"))


def test_predictions_of_a_bundle_go_through_its_curves(exported, run, dataset):
    calibration = exported.calibration
    assert set(calibration.tasks) == {"click", "like", "watch"}
    assert calibration.tasks["click"].segments
    rows = dataset.rows("valid")
    raw = predicted(run, dataset, rows)
    column = exported.layout.id_columns("context")["tab"].start
    found = Ranker(exported).score_many(requests_of_log(dataset, "valid"))
    for row, scores, segment in zip(raw, found, rows.context[:, column], strict=True):
        for task, before, after in zip(exported.layout.task_names, row, scores[0], strict=True):
            curves = calibration.tasks[task]
            curve = curves.segments.get(str(segment), curves.overall)
            assert after == pytest.approx(curve.apply(np.array([before]))[0], rel=3e-3, abs=1e-4)


def test_segments_are_told_by_the_values_that_have_curves_of_their_own(exported, bundle):
    ranker, calibration = Ranker(exported), exported.calibration
    curves = {int(row) for each in calibration.tasks.values() for row in each.segments}
    texts = dict(exported.encoder.values("tab").select("row", "value").iter_rows())
    for row, text in texts.items():
        request = ranker.encoder.encode(RankRequest("u1", [1], {"tab": text}))
        assert ranker.segment(request) == (text if row in curves else "other")
    assert {texts[row] for row in curves & set(texts)}
    request = RankRequest("u1", [1], {})
    assert ranker.segment(ranker.encoder.encode(request)) in ("missing", "other")
    assert Ranker(bundle).segment(Ranker(bundle).encoder.encode(request)) == ""


def test_a_service_watches_each_segment(exported, tmp_path):
    (value, *_) = exported.encoder.text("tab", sorted(map(int, exported.calibration.tasks["click"].segments)))[::-1]
    with Parts(exported, tmp_path) as parts:
        for number, tab in enumerate((value, "nowhere")):
            reply = parts.answer("u1", [7], context={"tab": tab}, request_id=str(number))
            parts.tell({"request_id": str(number), "type": "impression"})
            segment = value if tab == value else "other"
            assert parts.served()[-1]["segment"] == segment
            told = count(parts.metrics, "infnet_expected_total", task="click", segment=segment)
            assert told == pytest.approx(reply.items[0].tasks["click"])


def test_calibrated_means_are_the_means_of_the_labels(run, dataset, few_are_enough):
    model = run.load_model().eval()
    found, scores = calibrate(model, dataset, "valid", CalibrationSettings()), predict(model, dataset, "valid").scores
    labels = dataset.rows("valid").labels
    for task, column, truth in zip(model.layout.task_names, scores.T, labels.T, strict=True):
        assert found.tasks[task].overall.apply(column).mean() == pytest.approx(truth.mean(), rel=1e-3)


def test_the_order_by_a_task_stays_without_segments(run, bundle, dataset, few_are_enough):
    found = calibrate(run.load_model().eval(), dataset, "valid", CalibrationSettings())
    before = Ranker(bundle).score("u1", range(1, 41), time_ms=int(dataset.rows("valid").time.max()))
    request = Ranker(bundle).encoder.encode(requests_of_log(dataset, "valid")[0])
    after = found.apply(before, bundle.layout, request)
    for column, calibrated in zip(before.T, after.T, strict=True):
        assert (np.diff(calibrated[np.argsort(column)]) >= 0).all()
    assert (before != after).any()


def test_quality_is_measured_on_rows_that_a_curve_has_not_seen(run, dataset, few_are_enough):
    model = run.load_model().eval()
    found = calibrate(model, dataset, "valid", CalibrationSettings())
    scores, labels = predict(model, dataset, "valid").scores[:, 0], dataset.rows("valid").labels[:, 0]
    quality = found.quality["click"]
    assert quality.pcoc_before == pytest.approx(scores.sum() / labels.sum())
    assert abs(quality.pcoc_after - 1) < abs(quality.pcoc_before - 1)


def test_too_few_labels_leave_a_task_as_it_is_or_with_the_curve_it_had(run, bundle, dataset, monkeypatch, tmp_path):
    model = run.load_model().eval()
    found = calibrate(model, dataset, "valid", CalibrationSettings())
    assert (found.tasks, found.quality) == ({}, {})
    monkeypatch.setattr(calibrators, "_LEAST_ROWS", 30)
    monkeypatch.setattr(calibrators, "_LEAST_POSITIVES", 5)
    before = calibrate(model, dataset, "valid", CalibrationSettings(by="tab"))
    monkeypatch.undo()
    after = calibrate(model, dataset, "valid", CalibrationSettings(by="tab"), before)
    assert after.tasks["click"].overall == before.tasks["click"].overall
    assert after.tasks["click"].segments == {}


def test_labels_that_fall_keep_the_curve_of_before(run, dataset, few_are_enough):
    model = run.load_model().eval()  # of random weights
    before = calibrate(model, dataset, "valid", CalibrationSettings())
    with pytest.raises(DataError, match="labels fall where predictions rise"):
        calibrate(model, dataset, "valid", CalibrationSettings(method="platt"))
    after = calibrate(model, dataset, "valid", CalibrationSettings(method="platt"), before)
    kept = [task for task, curves in after.tasks.items() if curves.overall.kind == "isotonic"]
    assert "watch" in kept
    assert {"click", "like"} & set(kept)
    for task in kept:
        assert after.tasks[task].overall == before.tasks[task].overall


def test_a_model_that_has_been_calibrated_is_another_version(exported, bundle):
    assert exported.manifest.version != bundle.manifest.version
    assert bundle.calibration is None
    assert BundleCalibration.model_validate_json((exported.path / "calibration.json").read_text()) == (
        exported.calibration
    )


def test_a_damaged_calibration_is_told(exported):
    (exported.path / "calibration.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"calibration.json"):
        Bundle.open(exported.path)
    with pytest.raises(ArtifactError, match=r"calibration.json: settings is damaged \(Field required\)"):
        Ranker(Bundle(exported.path, exported.manifest)).score("u1", [1])


@pytest.mark.parametrize("by", ["tba", "temperature", "rank", "tag"])
def test_segments_are_categories_of_user_or_context(run, dataset, by):
    with pytest.raises(SpecError, match=f"segments by '{by}': no category of the user or the context is called so"):
        calibrate(run.load_model(), dataset, "valid", CalibrationSettings(by=by))
