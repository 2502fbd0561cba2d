"""Lossless compression of codes with the prior and a range coder.

A range coder needs about -log2 p bits for a symbol of probability p under the model. The negative
log-likelihood of a grid of codes is therefore the length of a real file, up to a few bytes.
`results` compares these files with WebP files of the same PSNR.

    bytes 0-1   "VQ"
    bytes 2-4   rows and columns of the grid; class label, or num_classes for "no label"
    bytes 5-6   fingerprint of the prior's weights and of bytes 0-4
    bytes 7-8   checksum of the codes and of bytes 9 onwards
    bytes 9-    output of the range coder, in words of 4 bytes

The bits per code that `metrics.code_bits` reports include neither these 9 bytes nor the prior,
which the receiver must have.

Papers: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised
message" (1979); implementation: the package constriction (Bamler 2022, arXiv:2201.01741).
"""

from __future__ import annotations

import copy
import hashlib
import zlib
from collections.abc import Callable

import constriction
import numpy as np
import torch
from torch import Tensor

from ..checkpoints import DataError
from ..checks import check_tensor, check_whole
from ..pixelcnn import PixelCNN
from ..sampling import CachedPixelCNN

MAGIC, HEADER, WORD = b"VQ", 9, 4


def compress(prior: PixelCNN, codes: Tensor, label: int | None = None) -> bytes:
    """Compress one grid of codes.

    Args:
        prior: a copy of it is evaluated in eval() mode, in double precision, on the CPU.
        codes: int64 (h, w, slots), with 1 to 255 rows and columns.
        label: class for the prior, stored in the file; None for "no label".

    Returns:
        The content of the file.

    Raises:
        ValueError: wrong shape or dtype, or a code or label that does not exist.
    """
    check_tensor("codes", codes, torch.long, ("h", "w", prior.slots), prior.num_embeddings)
    shape = tuple(codes.shape)
    check_whole(1, 255, rows=shape[0], columns=shape[1])
    if label is not None:
        check_whole(0, prior.num_classes - 1, label=label)
    prior64, remaining_codes = copy.deepcopy(prior).cpu().double(), iter(codes.flatten().tolist())
    encoder = constriction.stream.queue.RangeEncoder()

    def encode(p: np.ndarray) -> int:
        encoder.encode(code := next(remaining_codes), _categorical(p))
        return code

    header = MAGIC + bytes([*shape[:2], prior.num_classes if label is None else label])
    _for_each_code(prior64, header, encode)
    payload = encoder.get_compressed().astype("<u4").tobytes()
    return header + _fingerprint(prior64, header) + _checksum(codes, payload) + payload


def decompress(prior: PixelCNN, data: bytes) -> tuple[Tensor, int | None]:
    """Inverse of `compress`, with the same prior.

    Decoding needs exactly the probabilities of encoding: one difference in the last bit makes all
    following symbols wrong. Sums of floating-point numbers depend on their order, so both functions
    perform the same operations, with `CachedPixelCNN` and one image at a time. `compress` could
    compute all logits in one forward pass, which is faster, but such a file could not be decoded.

    Double precision makes the result less sensitive: the coder rounds probabilities to 24 bits, and
    differences in the 16th digit nearly always round to the same number. In single precision a
    processor with other instructions could not decode the file. This is no guarantee beyond the
    same machine and library versions; the checksum detects the remaining cases. A portable format
    would need integer arithmetic.

    Returns:
        Codes, int64 (h, w, slots) on the CPU, and the class label or None.

    Raises:
        DataError: not a file of `compress`, truncated, written with another prior, or damaged.
    """
    if data[:2] != MAGIC:
        raise DataError("this is not a file of compressed codes: use one that `compress` wrote")
    payload = data[HEADER:]
    if not payload or len(payload) % WORD:
        raise DataError("the file of codes is cut short or has extra bytes: use another copy")
    prior64, label = copy.deepcopy(prior).cpu().double(), data[4]
    if data[5:7] != _fingerprint(prior64, data[:5]) or label > prior.num_classes:
        raise DataError(
            "the file was written with another prior, or its header is damaged: load the prior "
            "that was used to write it, or use another copy"
        )
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype("=u4"))
    decoded_codes: list[int] = []

    def decode(p: np.ndarray) -> int:
        decoded_codes.append(int(decoder.decode(_categorical(p))))
        return decoded_codes[-1]

    damaged = DataError(
        "the file is damaged or cut short, or was written on a machine that rounds differently: "
        "the decoded codes do not match its checksum. Use another copy, or compress the codes "
        "again."
    )
    try:
        _for_each_code(prior64, data, decode)
    except AssertionError as error:  # from constriction, for bits that no encoder can have produced
        raise damaged from error
    codes = torch.tensor(decoded_codes, dtype=torch.long).view(*data[2:4], prior.slots)
    if data[7:9] != _checksum(codes, payload):
        raise damaged
    return codes, None if label == prior.num_classes else label


@torch.inference_mode()
def _for_each_code(
    prior: PixelCNN, header: bytes, code_symbol: Callable[[np.ndarray], int]
) -> None:
    """Call `code_symbol` with the probabilities (K,) of each code in order; it returns the code."""
    height, width, label = header[2:5]
    cache = CachedPixelCNN(prior, (1, height, width, prior.slots), torch.tensor([label]))
    for row in range(height):
        for column in range(width):
            cache.start_position(row, column)
            for slot in range(prior.slots):
                cache.compute_slot(slot)
                p = cache.logits(slot)[0].softmax(-1).numpy()
                cache.set_code(slot, torch.tensor([code_symbol(p)]))


def _categorical(p: np.ndarray) -> constriction.stream.model.Categorical:
    """The distribution in the coder's format: integer frequencies, all greater than 0."""
    return constriction.stream.model.Categorical(p, lazy=True, perfect=False)


def _fingerprint(prior64: PixelCNN, header: bytes) -> bytes:
    digest = hashlib.sha256(header)
    for parameter in prior64.parameters():
        digest.update(parameter.detach().contiguous().numpy())
    return digest.digest()[:2]


def _checksum(codes: Tensor, payload: bytes) -> bytes:
    content = codes.cpu().numpy().astype("<i8").tobytes() + payload
    return zlib.crc32(content).to_bytes(4, "little")[:2]
