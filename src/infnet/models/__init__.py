"""One model per file, and the registry that finds them by name."""

from infnet.models.base import ModelConfig, RankingModel, build_model, model_names, predictions, register_model
from infnet.models.infnet import INFNet, INFNetConfig
from infnet.models.shared_bottom import SharedBottom, SharedBottomConfig

__all__ = [
    "INFNet",
    "INFNetConfig",
    "ModelConfig",
    "RankingModel",
    "SharedBottom",
    "SharedBottomConfig",
    "build_model",
    "model_names",
    "predictions",
    "register_model",
]
