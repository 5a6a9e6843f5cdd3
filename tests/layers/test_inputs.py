import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs
from torch.testing import assert_close

from infnet.models import build_model
from random_batches import as_double, make_batch, make_layout

layouts = st.builds(
    make_layout,
    tags=st.booleans(),
    dense=st.booleans(),
    lengths=st.sampled_from([(1,), (5, 3), (2, 4, 3)]),
    gap=st.booleans(),
    position=st.booleans(),
)


def model_of(layout, combine="concat"):
    torch.manual_seed(0)
    settings = {"width": 6, "embedding_width": 4, "embedding_std": 1.0, "event_combine": combine}
    return build_model("shared_bottom", layout, settings).double().eval()


@settings(max_examples=25)
@given(layout=layouts, combine=st.sampled_from(["sum", "concat"]), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_view_equals_the_tokens_one_by_one(layout, combine, N, seed):
    R = 4
    model, batch = model_of(layout, combine), as_double(make_batch(layout, R, N, seed))
    tokens, written = model.tokens(batch), WrittenInputs(model, batch)
    fields, targets, means = tokens.fields(), tokens.targets_of_candidates(), tokens.events.means()
    padded = tokens.events.padded()
    for r in range(R):
        assert_close(means[r], torch.stack(written.pooled(r)))
        for (of_behaviour, present), events in zip(padded.by_behaviour(), written.histories[r], strict=True):
            assert present[r].tolist() == [True] * len(events) + [False] * (present.shape[1] - len(events))
            if events:
                assert_close(of_behaviour[r, : len(events)], torch.stack(events))
        for c in range(N):
            assert_close(fields[r, c], torch.stack(written.fields(r, c)))
            assert_close(targets[r, c], torch.stack(written.targets(r, c)))


@pytest.mark.parametrize("extra", [False, True])
def test_padding_of_histories_passes_no_gradient(extra):
    layout = make_layout(position=extra)
    model, batch = model_of(layout), as_double(make_batch(layout, 5, 1))
    table = model.embedding.weight

    def gradient(value_in_padding):
        padded = model.tokens(batch).events.padded()
        tokens = torch.where(padded.present[..., None], padded.tokens, padded.tokens * value_in_padding)
        return torch.autograd.grad((tokens * padded.present[..., None]).square().sum(), table)[0].to_dense()

    assert_close(gradient(1.0), gradient(1e6))


def test_padding_is_no_longer_than_the_longest_history_of_the_batch():
    layout = make_layout(lengths=(50, 30))
    model, batch = model_of(layout), as_double(make_batch(layout, 3, 1))
    padded = model.tokens(batch).events.padded()
    longest = [max(1, int(p.sum(dim=1).max())) for p in batch.history_present.split([50, 30], dim=1)]
    assert list(padded.lengths) == longest
    assert padded.tokens.shape == (3, sum(longest), 6)


def test_position_and_gap_can_be_asked_for_where_the_dataset_does_not():
    layout = make_layout()
    model = build_model("shared_bottom", layout, {"event_position": True, "event_gap": True})
    assert all(b.position and b.gap for b in model.layout.behaviours)
    assert model.layout.has_gaps
    assert not layout.has_gaps
    assert {f"inputs.events.{name}.0" for name in ("position", "gap")} <= set(dict(model.named_parameters()))
