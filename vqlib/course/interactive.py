"""Frame of the interactive figures: controls, and a picture that is drawn again when one of them
changes. `widgets` has the figures.

Works with ipywidgets 7.7 (Colab) and later, by mouse or by keyboard (Tab, arrow keys, space).
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTE = "Run this cell after opening the notebook. Keyboard: Tab, arrow keys, space."


class Explorer:
    """Controls above a picture that is drawn again when one of them changes.

    Without a running kernel, as on a web page, only the text is shown.

    Args:
        text: what the controls change, for readers without a kernel.
        draw: values of the controls, by name -> HTML, see `side_by_side`.
        controls: widgets with a `value`.
    """

    def __init__(self, text: str, draw: Callable[..., str], **controls: ipywidgets.Widget) -> None:
        self.text, self.draw, self.controls = text, draw, controls
        wrapped = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        panel = ipywidgets.Box(list(controls.values()), layout=wrapped)
        self.picture = ipywidgets.HTML()
        note = ipywidgets.HTML(f"<small>{NOTE}</small>")
        self.box = ipywidgets.VBox([panel, self.picture, note])
        self.drawn: dict[str, Any] = {}
        for control in controls.values():
            control.observe(self.update, names="value")
        self.update()

    def update(self, *_: object) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        if values != self.drawn:  # a control may have changed another one, and so drawn already
            self.drawn = values
            self.picture.value = self.draw(**values)

    def __repr__(self) -> str:
        return f"Interactive figure (in a running notebook):\n{self.text}"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"text/plain": repr(self), WIDGET: view}


# --- controls -------------------------------------------------------------------------------------


def slider(name: str, low: float, high: float, value: float, step: float = 1, wait: bool = False):
    """A slider, for floats if `step` is one. With `wait`, the picture is drawn only when the slider
    is released, because it takes long."""
    kind = ipywidgets.FloatSlider if isinstance(step, float) else ipywidgets.IntSlider
    options = {"value": value, "min": low, "max": high, "step": step, "continuous_update": not wait}
    style, layout = {"description_width": "initial"}, {"width": "270px"}
    return kind(description=name, style=style, layout=layout, **options)


def choice(name: str, options: Sequence[Any]) -> ipywidgets.ToggleButtons:
    """Buttons for values, or for (name, value); the first one is chosen. JupyterLab takes away the
    arrow keys from a menu, so that it can't be used with the keyboard."""
    style = {"description_width": "initial", "button_width": "auto"}
    layout = {"width": "max-content", "max_width": "100%", "margin": "2px 16px 2px 2px"}
    return ipywidgets.ToggleButtons(options=options, description=name, style=style, layout=layout)


def checkbox(name: str) -> ipywidgets.Checkbox:
    layout = {"width": "auto", "overflow": "visible"}  # the frame of the focus is outside
    return ipywidgets.Checkbox(description=name, indent=False, layout=layout)


# --- pictures -------------------------------------------------------------------------------------


def side_by_side(*pictures: str, caption: str = "") -> str:
    """HTML of pictures side by side, with a line of text below; narrow windows wrap them."""
    return (
        f'<div style="display:flex;flex-wrap:wrap">{"".join(pictures)}</div>'
        f'<div style="line-height:1.4">{escape(caption)}</div>'
    )


def picture(title: str, image: Tensor, side: int = 192) -> str:
    """HTML of an image, (3, H, W), float in [0, 1] or uint8, with its title below. Few pixels are
    enlarged as squares."""
    if image.is_floating_point():
        image = (255 * image.detach().cpu().clamp(0, 1)).round().byte()
    file = io.BytesIO()
    to_pil_image(image).save(file, "PNG", compress_level=1)
    style = f"width:{side}px;" + "image-rendering:pixelated;" * (image.shape[-1] < side)
    return (
        f'<figure style="margin:4px 8px 4px 0;width:{side}px;line-height:1.3">'
        f"{_img(title, file, style)}<figcaption>{escape(title)}</figcaption></figure>"
    )


def chart(alt: str, figure: Figure) -> str:
    """HTML of a Matplotlib figure, which is closed: the notebook shows it only here."""
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1})
    plt.close(figure)
    return _img(alt, file, "max-width:100%;")


def _img(alt: str, png: io.BytesIO, style: str) -> str:
    source = "data:image/png;base64," + b64encode(png.getvalue()).decode()
    return f'<img alt="{escape(alt)}" style="{style}margin:0" src="{source}">'
