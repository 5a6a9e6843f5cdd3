import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from infnet.data.batch import FieldValues
from infnet.layers.embedding import EmbeddingTable
from infnet.layers.tokens import FieldTokenizer, RowProjection, gather_rows, mean_of_present
from random_batches import as_double, make_batch, make_layout

WIDTH = 4


def make_embedded(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)


@given(
    tags=st.booleans(),
    dense=st.booleans(),
    rich_sides=st.sampled_from([("context", "item"), ("user", "context"), ("user", "candidate")]),
    ids=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_every_field_is_one_token_made_by_its_storage(tags, dense, rich_sides, ids, seed):
    layout = make_layout(
        user=ids, context=ids, item=2 + ids, candidate=ids, tags=tags, dense=dense, rich_sides=rich_sides
    )
    batch = as_double(make_batch(layout, 3, 2, seed))
    embedded = make_embedded(len(batch.rows), seed)
    for sides in (("user",), ("context",), ("item",), ("candidate",), ("user", "context")):
        tokenizer = FieldTokenizer(layout, sides, WIDTH).double()
        found = tokenizer(embedded, *(getattr(batch, side) for side in sides))
        fields = [(side, field) for side in sides for field in layout.side(side)]
        assert tokenizer.num_tokens == len(fields) == found.shape[1]
        assert sorted(tokenizer.names) == sorted(field.name for _, field in fields)
        linears = iter(tokenizer.dense)
        for side, field in fields:
            values, linear = getattr(batch, side), next(linears) if field.storage == "dense" else None
            for entity in range(len(values.ids)):
                if linear is not None:
                    wanted = linear.weight @ values.dense[entity, layout.dense_columns(side)[field.name]] + linear.bias
                else:
                    positions = values.ids[entity, layout.id_columns(side)[field.name]]
                    own = [embedded[p] for p in positions if p >= 0]
                    wanted = torch.stack(own).mean(0) if own else torch.zeros(WIDTH, dtype=torch.float64)
                assert_close(found[entity, tokenizer.names.index(field.name)], wanted)


@given(
    rows=st.lists(st.lists(st.integers(-1, 5), min_size=3, max_size=3), max_size=8),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_tags_are_averaged_wherever_their_padding_stands(rows, dtype):
    table = make_embedded(6)
    found = mean_of_present(table, torch.tensor(rows, dtype=dtype).reshape(-1, 3))
    wanted = torch.zeros(len(rows), WIDTH, dtype=torch.float64)
    for i, row in enumerate(rows):
        present = [table[r] for r in row if r >= 0]
        if present:
            wanted = wanted.index_put((torch.tensor([i]),), torch.stack(present).mean(0))
    assert_close(found, wanted)
    weights = torch.linspace(1, 2, wanted.numel(), dtype=torch.float64).view_as(wanted)
    inputs = {"inputs": table, "materialize_grads": True}
    if any(r >= 0 for row in rows for r in row):
        assert_close(
            torch.autograd.grad((found * weights).sum(), **inputs),
            torch.autograd.grad((wanted * weights).sum(), **inputs),
        )


def test_gathered_rows_keep_the_shape_of_the_index():
    table = make_embedded(6)
    rows = torch.tensor([[[0], [5]], [[2], [2]]])
    assert torch.equal(gather_rows(table, rows), table[rows])


def test_values_of_no_entity_are_no_tokens():
    layout = make_layout(dense=True, tags=True)
    none = FieldValues(torch.zeros(0, layout.id_width("user"), dtype=torch.int32), torch.zeros(0, 2).double())
    assert FieldTokenizer(layout, ("user",), WIDTH).double()(make_embedded(3), none).shape == (0, 4, WIDTH)


@pytest.mark.parametrize(("embedding_width", "width"), [(4, 4), (3, 4), (6, 2)])
def test_rows_come_in_the_token_width_once_each(embedding_width, width):
    batch = make_batch(make_layout(), 3, 2)
    table, rows = EmbeddingTable(30, embedding_width, std=1.0), RowProjection(embedding_width, width)
    found = rows(table, batch)
    assert found.shape == (len(batch.rows), width)
    raw = table.weight[batch.rows]
    assert_close(found, raw if embedding_width == width else raw @ rows.project.weight.T)
    assert sum(p.numel() for p in rows.parameters()) == (0 if embedding_width == width else embedding_width * width)
