"""Models that go beyond the report, one per module."""

from .causal_transformer import CausalTransformer
from .deep import DEEP
from .masked_transformer import MaskedTransformer
from .realistic import RealisticDecoder

__all__ = ["DEEP", "CausalTransformer", "MaskedTransformer", "RealisticDecoder"]
