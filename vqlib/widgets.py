"""What the notebooks let one play with: sliders in front of functions that stand elsewhere.

Nothing here is needed to follow the text; every widget repeats a static figure that stands above
it. Works with ipywidgets 7.7 (Colab) and later.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import ipywidgets
from PIL import Image
from torch import Tensor


def to_png(image: Tensor) -> bytes:
    """float (3, H, W), pixels in [0, 1], as the bytes of a PNG file."""
    pixels = image.detach().cpu().clamp(0, 1).mul(255).round().byte()
    file = io.BytesIO()
    Image.fromarray(pixels.movedim(0, -1).numpy()).save(file, "PNG")
    return file.getvalue()


def code_browser(paint: Callable[[int, Tensor], Tensor], counts: Tensor) -> ipywidgets.VBox:
    """Pick a slot and one of its codes, see what the code paints.

    Args:
        paint: (slot, codes int64 (n,)) -> pictures, float (n, 3, H, W) in [0, 1].
        counts: int64 (slots, K), how often each code is used; the slider goes by rank.
    """
    slots, rows = counts.shape
    ranked = counts.argsort(1, descending=True)
    share = counts / counts.sum(1, keepdim=True)
    slot = ipywidgets.ToggleButtons(options=list(range(slots)), description="slot")
    rank = ipywidgets.IntSlider(value=1, min=1, max=rows, description="rank")
    picture = ipywidgets.Image(format="png", width=192, height=192)
    caption = ipywidgets.Label()

    def update(*_: object) -> None:
        code = ranked[slot.value, rank.value - 1]
        picture.value = to_png(paint(slot.value, code[None])[0])
        used = 100 * float(share[slot.value, code])
        caption.value = f"code {int(code)} of slot {slot.value}: {used:.2f} % of the positions"

    for control in (slot, rank):
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([slot, rank, picture, caption])
