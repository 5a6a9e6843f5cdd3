"""Promises and experiments that the tests of several models share."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import Layout
from infnet.errors import SpecError
from infnet.models import RankingModel, build_model
from random_batches import as_double, make_batch, make_layout


def assert_refused(model: str, setting: str, value: object) -> None:
    """A value out of range is refused in one line that names model, setting and what was found."""
    wrong = value[-1] if isinstance(value, list) and value else value  # of a list, the last number
    message = rf"^model '{model}', {setting}(\.\d+)?: .*found {re.escape(repr(wrong))}$"
    with pytest.raises(SpecError, match=message) as error:
        build_model(model, make_layout(), {setting: value})
    assert "\n" not in str(error.value)


def assert_close_in_bfloat16(model: RankingModel, batch: RequestBatch) -> None:
    """Scores stay close under autocast, and gradients finite."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch)
    rounded.float().sum().backward()
    assert_close(rounded.float(), model(batch), rtol=0.1, atol=0.1)
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def assert_candidates_score_as_single_rows(model: RankingModel, batch: RequestBatch) -> None:
    """Every candidate has the logits that it has as the only one of the only request."""
    together = model(batch)
    for r in range(batch.num_requests):
        for c in range(batch.num_candidates):
            assert_close(model(single_row(batch, r, c))[0, 0], together[r, c], rtol=1e-9, atol=1e-9)


def single_row(batch: RequestBatch, r: int, c: int) -> RequestBatch:
    """One candidate of one request."""

    def only(values: FieldValues, index: int) -> FieldValues:
        return FieldValues(values.ids[index : index + 1], values.dense[index : index + 1])

    of_request = ("history", "history_present", "history_gap", "user_index")
    return dataclasses.replace(
        batch,
        user=only(batch.user, r),
        context=only(batch.context, r),
        candidate=only(batch.candidate, r * batch.num_candidates + c),
        candidate_item=batch.candidate_item[r : r + 1, c : c + 1],
        present=batch.present[r : r + 1, c : c + 1],
        labels=None,
        **{name: getattr(batch, name)[r : r + 1] for name in of_request},
    )


def full_batch(layout: Layout, num_requests: int, num_candidates: int) -> RequestBatch:
    """A batch for a model in double precision in which every history is as long as the layout allows."""
    batch = as_double(make_batch(layout, num_requests, num_candidates))
    batch.history_present[:] = True
    return batch


def first_output_of(part: nn.Module, model: RankingModel, batch: RequestBatch) -> Tensor:
    """The first of the tensors that a part gives while the model scores a batch."""
    found = []
    handle = part.register_forward_hook(lambda module, inputs, outputs: found.append(outputs[0]))
    model(batch)
    handle.remove()
    return found[0]


def assert_blind_to_candidates(part: nn.Module, model: RankingModel, batch: RequestBatch) -> None:
    """Other candidates change nothing of the part's first output. Changes the batch."""
    before = first_output_of(part, model, batch)
    batch.candidate_item[:] = (batch.candidate_item + 1) % len(batch.item.ids)
    batch.candidate.ids[:] = batch.candidate.ids.flip(0)
    assert torch.equal(first_output_of(part, model, batch), before)
