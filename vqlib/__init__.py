"""vqlib: how images become discrete codes, and how new images are drawn from them.

The modules are chapters, in the order of the notebooks: `synthetic` and `data`, `quantizer`,
`deep` and `vqvae`, `codes`, `pixelcnn`, `metrics`, `cached` and `sampling`, `compression`,
`classifier`, `weights`, `codecs`, `judging` and `evaluation`, `loop` and `training`; `curves`,
`plots` and `widgets` serve only the notebooks.
"""

from .codes import EncodedDataset, encode_dataset
from .compression import compress, decompress
from .data import CLASSES, DataError, open_dataset, work_dir
from .pixelcnn import MaskedConv2d, PixelCNN, PixelRCNN, ResidualMaskedConv2d
from .quantizer import VectorQuantizer
from .sampling import sample
from .training import DEEP, REPORT, WORKBOOK, train_classifier, train_prior, train_vqvae
from .vqvae import VQVAE, Decoder, Encoder
from .weights import load_model, load_pretrained, save_model

__all__ = [
    "CLASSES",
    "DEEP",
    "REPORT",
    "VQVAE",
    "WORKBOOK",
    "DataError",
    "Decoder",
    "EncodedDataset",
    "Encoder",
    "MaskedConv2d",
    "PixelCNN",
    "PixelRCNN",
    "ResidualMaskedConv2d",
    "VectorQuantizer",
    "compress",
    "decompress",
    "encode_dataset",
    "load_model",
    "load_pretrained",
    "open_dataset",
    "sample",
    "save_model",
    "train_classifier",
    "train_prior",
    "train_vqvae",
    "work_dir",
]
