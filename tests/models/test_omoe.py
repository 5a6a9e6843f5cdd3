import pytest
import torch
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.mmoe import MMoE, MMoEConfig
from infnet.models.omoe import OMoE
from random_batches import as_double, make_batch, make_layout


def model_of(cls, layout, config):
    torch.manual_seed(0)
    model = cls(layout, config).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(50)
    return model


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("lengths", [(), (5, 3)])
def test_equals_mmoe_whose_gates_are_one(tasks, lengths):
    layout = make_layout(tags=True, dense=True, tasks=tasks, lengths=lengths)
    config = MMoEConfig(num_experts=3, hidden=(9, 7))
    one_gate, many_gates = model_of(OMoE, layout, config), model_of(MMoE, layout, config)
    weights = one_gate.state_dict()
    many_gates.load_state_dict(
        {name: w if "gates" not in name else w.repeat(tasks, *(1,) * (w.ndim - 1)) for name, w in weights.items()}
    )
    batch = as_double(make_batch(layout, 5, 3))
    assert_close(one_gate(batch), many_gates(batch), rtol=1e-13, atol=1e-13)


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(OMoE, layout, MMoEConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("num_experts", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(SpecError, match=rf"model 'omoe', {setting}.*found") as error:
        build_model("omoe", make_layout(), {setting: value})
    assert "\n" not in str(error.value)
