"""Chapter 8: the prior as a compressor. 256 codes of 9 bits are 288 bytes, likely ones are fewer.

A range coder turns a sequence of symbols into a file of as many bits as the model finds them
unlikely: -log2 p for each, and hardly one bit more in all. So bits per code are no figure of speech
but the length of a file, and here is that file.

A file, byte by byte: 0-1 "VQ"; 2-3 rows and columns of the grid; 4 the class, or 255 for none;
5-6 fingerprint of the prior; 7-8 check sum of the codes; from 9 on the range coder's words.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import constriction
import numpy as np
import torch
from torch import Tensor

from .data import DataError
from .pixelcnn import PixelCNN
from .sampling import CachedPixelCNN

MAGIC, HEADER, NO_CLASS = b"VQ", 9, 255


def compress(prior: PixelCNN, codes: Tensor, label: int | None = None) -> bytes:
    """One grid of codes as a file.

    Args:
        prior: used in eval().
        codes: int64 (h, w, slots), at most 255 rows and columns.
        label: the class that the prior is told; it is kept in the file. None: no class.

    Raises:
        ValueError: codes of another shape, or a class that does not exist.
    """
    if codes.ndim != 3 or codes.shape[-1] != prior.slots or max(codes.shape[:2]) > 255:
        raise ValueError(f"codes must be (h, w, {prior.slots}), got {tuple(codes.shape)}")
    if label is not None and not 0 <= label < prior.num_classes:
        raise ValueError(f"label must lie in 0..{prior.num_classes - 1}, got {label}")
    encoder, remaining = constriction.stream.queue.RangeEncoder(), iter(codes.flatten().tolist())

    def encode(p: np.ndarray) -> int:
        code = next(remaining)
        encoder.encode(code, _model(p))
        return code

    height, width, _ = codes.shape
    _walk(prior, height, width, label, encode)
    header = MAGIC + bytes([height, width, NO_CLASS if label is None else label])
    words = encoder.get_compressed().astype("<u4").tobytes()
    # The decoder takes what is missing at the end for zeros.
    return header + _fingerprint(prior) + _check_sum(codes) + words.rstrip(b"\0")


def decompress(prior: PixelCNN, file: bytes) -> tuple[Tensor, int | None]:
    """The inverse of `compress`, with the same prior.

    The coder must see the very same probabilities as when the file was written: one that differs in
    its last digit makes all codes after it wrong. So both ways walk through `CachedPixelCNN`, one
    image at a time, instead of one computing all at once. Another processor may round differently;
    the check sum finds that too. A format for the world would compute in whole numbers.

    Returns:
        Codes, int64 (h, w, slots), and the class, or None.

    Raises:
        DataError: not such a file, another prior's, or damaged.
    """
    if len(file) < HEADER or file[:2] != MAGIC:
        raise DataError("this is not a file of compressed codes: `compress` writes one")
    height, width, label = file[2], file[3], file[4]
    if file[5:7] != _fingerprint(prior):
        raise DataError("the file was written with another prior, and only that one can read it")
    if label != NO_CLASS and label >= prior.num_classes:
        raise DataError(f"the file is damaged: it names class {label} of {prior.num_classes}")
    payload = file[HEADER:] + bytes(-(len(file) - HEADER) % 4)
    decoder = constriction.stream.queue.RangeDecoder(
        np.frombuffer(payload, "<u4").astype(np.uint32)
    )
    found: list[int] = []

    def decode(p: np.ndarray) -> int:
        found.append(int(decoder.decode(_model(p))))
        return found[-1]

    damaged = DataError(
        "the file is damaged, or was written by a machine that rounds differently: the codes in it "
        "do not add up to its check sum. Take another copy, or compress the codes again."
    )
    if height * width * prior.slots > 64 * len(file):
        raise damaged  # no prior is that sure; a wrong size must not cost an hour
    try:
        _walk(prior, height, width, None if label == NO_CLASS else label, decode)
    except (AssertionError, ValueError) as error:  # bits that no codes would have given
        raise damaged from error
    codes = torch.tensor(found, dtype=torch.long).view(height, width, prior.slots)
    if file[7:9] != _check_sum(codes):
        raise damaged
    return codes, None if label == NO_CLASS else label


@torch.inference_mode()
def _walk(
    prior: PixelCNN, height: int, width: int, label: int | None, step: Callable[[np.ndarray], int]
) -> None:
    """Show `step` the probabilities (K,) of each code in turn, and go on with what it returns."""
    device = next(prior.parameters()).device
    labels = torch.tensor([prior.num_classes if label is None else label], device=device)
    cache = CachedPixelCNN(prior, (1, height, width, prior.slots), labels)
    for row in range(height):
        for column in range(width):
            cache.move_to(row, column)
            for slot in range(prior.slots):
                cache.advance(slot)
                p = cache.logits(slot)[0].float().softmax(-1).cpu().numpy()
                cache.put(slot, torch.tensor([step(p)], device=device))


def _model(p: np.ndarray) -> object:
    """The coder's own form of a distribution: whole numbers, and nothing is impossible."""
    return constriction.stream.model.Categorical(p, perfect=False)


def _fingerprint(prior: PixelCNN) -> bytes:
    digest = hashlib.sha256()
    for parameter in prior.parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()[:2]


def _check_sum(codes: Tensor) -> bytes:
    return zlib.crc32(codes.cpu().numpy().astype("<u2").tobytes()).to_bytes(4, "big")[:2]
