"""One model per file, and the registry that finds them by name."""

from infnet.models.base import ModelConfig, RankingModel, build_model, model_names, predictions, register_model

__all__ = ["ModelConfig", "RankingModel", "build_model", "model_names", "predictions", "register_model"]
