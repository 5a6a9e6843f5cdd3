"""One model per file, and the registry that finds them by name."""

from infnet.models.base import ModelConfig, RankingModel, build_model, model_names, predictions, register_model
from infnet.models.dcnv2 import DCNv2, DCNv2Config
from infnet.models.dien import DIEN, DIENConfig
from infnet.models.din import DIN, DINConfig
from infnet.models.din_dcnv2_ple import DINDCNv2PLE, DINDCNv2PLEConfig
from infnet.models.fm import FM, FMConfig
from infnet.models.gdcn import GDCN, GDCNConfig
from infnet.models.hstu import HSTU, HSTUConfig
from infnet.models.infnet import INFNet, INFNetConfig
from infnet.models.infnet_v2 import INFNetV2, INFNetV2Config
from infnet.models.longer import Longer, LongerConfig
from infnet.models.mmoe import MMoE, MMoEConfig
from infnet.models.omoe import OMoE
from infnet.models.onetrans import OneTrans, OneTransConfig
from infnet.models.ple import PLE, PLEConfig
from infnet.models.rankmixer import RankMixer, RankMixerConfig
from infnet.models.shared_bottom import SharedBottom, SharedBottomConfig
from infnet.models.stem import STEM, STEMConfig
from infnet.models.wukong import Wukong, WukongConfig

__all__ = [
    "DIEN",
    "DIN",
    "FM",
    "GDCN",
    "HSTU",
    "PLE",
    "STEM",
    "DCNv2",
    "DCNv2Config",
    "DIENConfig",
    "DINConfig",
    "DINDCNv2PLE",
    "DINDCNv2PLEConfig",
    "FMConfig",
    "GDCNConfig",
    "HSTUConfig",
    "INFNet",
    "INFNetConfig",
    "INFNetV2",
    "INFNetV2Config",
    "Longer",
    "LongerConfig",
    "MMoE",
    "MMoEConfig",
    "ModelConfig",
    "OMoE",
    "OneTrans",
    "OneTransConfig",
    "PLEConfig",
    "RankMixer",
    "RankMixerConfig",
    "RankingModel",
    "STEMConfig",
    "SharedBottom",
    "SharedBottomConfig",
    "Wukong",
    "WukongConfig",
    "build_model",
    "model_names",
    "predictions",
    "register_model",
]
