"""vqlib: VQ-VAEs that encode images as discrete codes, and PixelCNN priors that generate new ones.

The modules of this package implement the method: `checks`, `distributed`, `checkpoints`, `data`,
`quantizer`, `vqvae`, `codes`, `pixelcnn`, `metrics`, `sampling`, `training`, in the order of their
imports. The subpackages build on them: `lesions` (dermoscopic data sets and a classifier), `beyond`
(models that are not in the report), `evaluation` (image codecs, entropy coding, distances between
sets of images) and `course` (figures and widgets of the notebooks).
"""

from .beyond import DEEP
from .checkpoints import DataError, load_model, load_pretrained, save_model, work_dir
from .codes import EncodedDataset, encode_dataset
from .data import ImageDataset
from .evaluation import compress, decompress
from .lesions import CLASSES, open_dataset, train_classifier
from .pixelcnn import MaskedConv2d, PixelCNN, PixelRCNN, ResidualMaskedConv2d
from .quantizer import VectorQuantizer
from .sampling import sample
from .training import REPORT, WORKBOOK, train_prior, train_vqvae
from .vqvae import VQVAE, Decoder, Encoder

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
    "ImageDataset",
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
