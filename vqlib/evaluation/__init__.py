"""Evaluation: baseline codecs, entropy coding, metrics of generated images, the results table."""

from .entropy_coding import compress, decompress
from .results import RESULTS, evaluate, load_results, results_table, save_results

__all__ = [
    "RESULTS",
    "compress",
    "decompress",
    "evaluate",
    "load_results",
    "results_table",
    "save_results",
]
