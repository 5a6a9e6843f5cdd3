import pytest
from model_checks import assert_refused
from torch.testing import assert_close
from written_out import make_model

from infnet.models.mmoe import MMoE, MMoEConfig
from infnet.models.omoe import OMoE
from random_batches import as_double, make_batch, make_layout


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("lengths", [(), (5, 3)])
def test_equals_mmoe_whose_gates_are_one(tasks, lengths):
    layout = make_layout(tags=True, dense=True, tasks=tasks, lengths=lengths)
    config = MMoEConfig(num_experts=3, hidden=(9, 7))
    one_gate, many_gates = make_model(OMoE, layout, config), make_model(MMoE, layout, config)
    weights = one_gate.state_dict()
    many_gates.load_state_dict(
        {name: w if "gates" not in name else w.repeat(tasks, *(1,) * (w.ndim - 1)) for name, w in weights.items()}
    )
    batch = as_double(make_batch(layout, 5, 3))
    assert_close(one_gate(batch), many_gates(batch), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("num_experts", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("omoe", setting, value)
