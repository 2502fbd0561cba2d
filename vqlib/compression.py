"""Chapter 8: the prior as a compressor. 256 codes of 9 bits are 288 bytes, likely ones are fewer.

A range coder turns a sequence of symbols into a file of as many bits as the model finds them
unlikely: -log2 p for each, and a few bytes more in all. So bits per code are no figure of speech
but the length of a file, and here is that file.

    bytes 0-1   "VQ"
    bytes 2-4   rows and columns of the grid; the class, or num_classes for none
    bytes 5-6   fingerprint of the prior's weights and of bytes 0-4
    bytes 7-8   check sum of the codes and of all that follows
    bytes 9-    what the range coder wrote, in words of 4 bytes

The bits per code leave out these 9 bytes, and the prior, which the reader must have.

Source: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised
message" (1979), by way of the package constriction (Bamler 2022, arXiv:2201.01741).
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

from .cached import CachedPixelCNN
from .data import DataError
from .pixelcnn import PixelCNN

MAGIC, HEADER, WORD = b"VQ", 9, 4


def compress(prior: PixelCNN, codes: Tensor, label: int | None = None) -> bytes:
    """One grid of codes as a file.

    Args:
        prior: used as in eval(), in double precision on the CPU; left as it is.
        codes: int64 (h, w, slots), 1 to 255 rows and columns.
        label: the class that the prior is told; it is kept in the file. None: no class.

    Raises:
        ValueError: codes of another shape or dtype, a code or a class that does not exist.
    """
    shape, alphabet = tuple(codes.shape), prior.num_embeddings
    if len(shape) != 3 or shape[2] != prior.slots or codes.dtype != torch.long:
        raise ValueError(f"codes must be int64 (h, w, {prior.slots}), got {codes.dtype} {shape}")
    if not 0 < min(shape) <= max(shape[:2]) < 256:
        raise ValueError(f"a grid has 1 to 255 rows and columns, got {shape}")
    if not 0 <= codes.min() <= codes.max() < alphabet:
        raise ValueError(f"codes must lie in 0..{alphabet - 1}")
    if label is not None and not 0 <= label < prior.num_classes:
        raise ValueError(f"label must lie in 0..{prior.num_classes - 1}, got {label}")
    exact, remaining = copy.deepcopy(prior).cpu().double(), iter(codes.flatten().tolist())
    encoder = constriction.stream.queue.RangeEncoder()

    def encode(p: np.ndarray) -> int:
        encoder.encode(code := next(remaining), _model(p))
        return code

    start = MAGIC + bytes([*shape[:2], prior.num_classes if label is None else label])
    _walk(exact, start, encode)
    payload = encoder.get_compressed().astype("<u4").tobytes()
    return start + _fingerprint(exact, start) + _check_sum(codes, payload) + payload


def decompress(prior: PixelCNN, data: bytes) -> tuple[Tensor, int | None]:
    """The inverse of `compress`, with the same prior.

    The coder must see the very same probabilities as when the file was written; one that differs
    in its last bit makes it lose its thread. Sums of floats depend on their order, so both ways
    take the same steps: through `CachedPixelCNN`, one image at a time. All logits at once, as only
    `compress` could compute them, would be faster, and unreadable.

    They do so in double precision. The coder rounds to 24 bits, and what differs in the 16th digit
    nearly always rounds to the same; in single precision, another set of the processor's
    instructions can't read the file. No guarantee: that holds for the same machine and versions.
    The check sum finds the rest. A format for the world would compute in whole numbers.

    Returns:
        Codes, int64 (h, w, slots) on the CPU, and the class, or None.

    Raises:
        DataError: not such a file, cut short, of another prior, or damaged.
    """
    if data[:2] != MAGIC:
        raise DataError("this is not a file of compressed codes: take one that `compress` wrote")
    payload = data[HEADER:]
    if not payload or len(payload) % WORD:
        raise DataError("the file of codes is cut short, or has grown: take another copy")
    exact, told = copy.deepcopy(prior).cpu().double(), data[4]
    if data[5:7] != _fingerprint(exact, data[:5]) or told > prior.num_classes:
        raise DataError(
            "the file was written with another prior, or its first bytes are damaged: load the "
            "prior that wrote it, or take another copy"
        )
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype("=u4"))
    found: list[int] = []

    def decode(p: np.ndarray) -> int:
        found.append(int(decoder.decode(_model(p))))
        return found[-1]

    damaged = DataError(
        "the file is damaged or cut short, or was written by a machine that rounds otherwise: its "
        "codes do not give its check sum. Take another copy, or compress the codes again."
    )
    try:
        _walk(exact, data, decode)
    except AssertionError as error:  # constriction's word for bits that no symbol could have left
        raise damaged from error
    codes = torch.tensor(found, dtype=torch.long).view(*data[2:4], prior.slots)
    if data[7:9] != _check_sum(codes, payload):
        raise damaged
    return codes, None if told == prior.num_classes else told


@torch.inference_mode()
def _walk(prior: PixelCNN, start: bytes, step: Callable[[np.ndarray], int]) -> None:
    """Show `step` the probabilities (K,) of each code in turn, and go on with what it returns."""
    height, width, told = start[2:5]
    cache = CachedPixelCNN(prior, (1, height, width, prior.slots), torch.tensor([told]))
    for row in range(height):
        for column in range(width):
            cache.move_to(row, column)
            for slot in range(prior.slots):
                cache.advance(slot)
                p = cache.logits(slot)[0].softmax(-1).numpy()
                cache.put(slot, torch.tensor([step(p)]))


def _model(p: np.ndarray) -> constriction.stream.model.Categorical:
    """The coder's own form of a distribution: whole numbers, and nothing is impossible."""
    return constriction.stream.model.Categorical(p, lazy=True, perfect=False)


def _fingerprint(exact: PixelCNN, start: bytes) -> bytes:
    digest = hashlib.sha256(start)
    for parameter in exact.parameters():
        digest.update(parameter.detach().contiguous().numpy())
    return digest.digest()[:2]


def _check_sum(codes: Tensor, payload: bytes) -> bytes:
    both = codes.cpu().numpy().astype("<i8").tobytes() + payload
    return zlib.crc32(both).to_bytes(4, "little")[:2]
