"""Interactive widgets for the notebooks.

Each widget repeats a static figure of the notebook, so none is needed to follow the text. They work
with ipywidgets 7.7 (Colab) and later.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import ipywidgets
from torch import Tensor
from torchvision.utils import make_grid, save_image

from ..lesions import CLASSES
from ..pixelcnn import PixelCNN
from ..sampling import sample
from ..vqvae import VQVAE, eval_mode


def to_png(image: Tensor) -> bytes:
    """PNG file of an image, float (3, H, W) in [0, 1]."""
    file = io.BytesIO()
    save_image(image, file, format="png")
    return file.getvalue()


def code_browser(decode_code: Callable[[int, Tensor], Tensor], counts: Tensor) -> ipywidgets.VBox:
    """Choose a slot and a code, and see what the code decodes to.

    Args:
        decode_code: (slot, codes int64 (n,)) -> images, float (n, 3, H, W) in [0, 1].
        counts: int64 (slots, K), how often each code is used; the slider goes by rank.
    """
    slots, num_embeddings = counts.shape
    ranked = counts.argsort(1, descending=True)
    frequency = counts / counts.sum(1, keepdim=True)
    slot = ipywidgets.ToggleButtons(options=list(range(slots)), description="slot")
    rank = ipywidgets.IntSlider(value=1, min=1, max=num_embeddings, description="rank")
    image_widget = ipywidgets.Image(format="png", width=192, height=192)
    caption = ipywidgets.Label()

    def update(*_: object) -> None:
        code = ranked[slot.value, rank.value - 1]
        image_widget.value = to_png(decode_code(slot.value, code[None])[0])
        percent = 100 * float(frequency[slot.value, code])
        share = f"used at {percent:.2f} % of the positions"
        caption.value = f"code {int(code)} of slot {slot.value}: {share}"

    for control in (slot, rank):
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([slot, rank, image_widget, caption])


def sampling_panel(
    vqvae: VQVAE, prior: PixelCNN, grid: tuple[int, int] = (8, 8)
) -> ipywidgets.VBox:
    """Panel that generates four images of a chosen class at a chosen temperature.

    Args:
        vqvae: decodes the samples.
        prior: generates the samples, on its own device.
        grid: (h, w) of the codes.
    """
    # Not None for "no class", because a dropdown does not show an option of value None.
    choices = [("no class", prior.num_classes), *((name, i) for i, name in enumerate(CLASSES))]
    label = ipywidgets.Dropdown(options=choices, description="class")
    temperature = ipywidgets.FloatSlider(
        value=1.0, min=0.4, max=1.6, step=0.1, description="temperature"
    )
    button = ipywidgets.Button(description="sample four")
    image_widget = ipywidgets.Image(format="png")
    image_widget.layout.display = "none"  # an empty one would show as a broken image

    def on_click(_: ipywidgets.Button) -> None:
        button.disabled, button.description = True, "sampling ..."
        try:
            codes = sample(prior, 4, label.value, temperature=temperature.value, grid=grid)
            with eval_mode(vqvae) as device:
                images = vqvae.decode(codes.to(device)).cpu()
            image_widget.value = to_png(make_grid(images, nrow=4, pad_value=1.0))
            image_widget.layout.display = ""
        finally:
            button.disabled, button.description = False, "sample four"

    button.on_click(on_click)
    return ipywidgets.VBox([ipywidgets.HBox([label, temperature, button]), image_widget])
