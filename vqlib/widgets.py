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
from torchvision.utils import make_grid

from .data import CLASSES
from .pixelcnn import PixelCNN
from .sampling import sample
from .vqvae import VQVAE, evaluating


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


def sampler(vqvae: VQVAE, prior: PixelCNN, grid: tuple[int, int] = (8, 8)) -> ipywidgets.VBox:
    """A panel that draws four new lesions: choose a class and a temperature, press the button.

    Args:
        vqvae: decodes what is drawn.
        prior: draws, on its own device.
        grid: (h, w) of the codes.
    """
    # Not None for "no class": a dropdown shows nothing for it.
    choices = [("no class", prior.num_classes), *((name, i) for i, name in enumerate(CLASSES))]
    label = ipywidgets.Dropdown(options=choices, description="class")
    temperature = ipywidgets.FloatSlider(
        value=1.0, min=0.4, max=1.6, step=0.1, description="temperature"
    )
    button = ipywidgets.Button(description="draw four")
    picture = ipywidgets.Image(format="png")
    picture.layout.display = "none"  # an empty one would show as a broken image

    def draw(_: ipywidgets.Button) -> None:
        button.disabled, button.description = True, "drawing ..."
        try:
            codes = sample(prior, 4, label.value, temperature=temperature.value, grid=grid)
            with evaluating(vqvae) as device:
                images = vqvae.decode(codes.to(device)).cpu()
            picture.value = to_png(make_grid(images, nrow=4, pad_value=1.0))
            picture.layout.display = ""
        finally:
            button.disabled, button.description = False, "draw four"

    button.on_click(draw)
    return ipywidgets.VBox([ipywidgets.HBox([label, temperature, button]), picture])
