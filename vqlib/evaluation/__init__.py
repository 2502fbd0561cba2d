"""Evaluation: baseline codecs, entropy coding, metrics of generated images, the results table."""

from .entropy_coding import compress, decompress
from .results import RESULTS, as_text, evaluate, load_results, save_results

__all__ = [
    "RESULTS",
    "as_text",
    "compress",
    "decompress",
    "evaluate",
    "load_results",
    "save_results",
]
