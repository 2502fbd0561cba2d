"""Checks of arguments: a wrong one raises a ValueError that names it, before anything is computed.

The other modules use them, because an error that PyTorch raises layers below does not say which
argument was wrong, and because some wrong arguments, such as uint8 images, raise no error at all.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(
    name: str,
    value: Any,
    dtype: torch.dtype,
    shape: Sequence[int | str | None],
    end: int | None = None,
) -> None:
    """Check the type, dtype, shape and values of a tensor.

    Args:
        name: of the argument, for the message.
        shape: the length of each dimension; a text, such as "B", stands for any length above 0, and
            None for any length.
        end: the values must lie in 0..end-1; on a GPU this check forces a synchronization. None: no
            check.

    Raises:
        ValueError: one of them differs; the message starts with `name`.
    """
    found, fits = type(value).__name__, False
    if isinstance(value, Tensor):
        found = f"{value.dtype} {tuple(value.shape)}"
        fits = value.dtype == dtype and value.ndim == len(shape)
        for actual, expected in zip(value.shape, shape):
            any_length = expected is None or (isinstance(expected, str) and actual > 0)
            fits = fits and (any_length or actual == expected)
    if not fits:
        lengths = str(tuple(shape)).replace("'", "").replace("None", "*")
        raise ValueError(f"{name}: expected {dtype} {lengths}, got {found}")
    if end is not None and value.numel() and not 0 <= value.min() <= value.max() < end:
        raise ValueError(f"{name}: expected 0..{end - 1}, got {value.min()}..{value.max()}")


def check_whole(low: float = 1, high: float = math.inf, /, **values: Any) -> None:
    """Check that arguments, given by name, are whole numbers in low..high.

    Raises:
        ValueError: one of them is not; the message starts with its name.
    """
    for name, value in values.items():
        try:
            fits = low <= operator.index(value) <= high and not isinstance(value, bool)
        except TypeError:  # not a whole number
            fits = False
        if not fits:
            raise ValueError(f"{name} must be a whole number in {low}..{high}, got {value!r}")
