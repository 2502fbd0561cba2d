"""Frame of the interactive figures: controls, and a picture that is drawn again when one of them
changes. `widgets` has the figures.

Works with ipywidgets 7.7 (Colab) and later, by mouse or by keyboard (Tab, arrow keys, space).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image
from torch import Tensor

from .training_curves import to_image_array

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
        return f"Interactive figure (in a running notebook): {self.text}"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"text/plain": repr(self), WIDGET: view}


# --- controls -------------------------------------------------------------------------------------


def slider(name: str, low: float, high: float, value: float, step: float = 1, wait: bool = False):
    """A slider, for floats if `step` is one. With `wait`, the picture is drawn only when the slider
    is released, because it takes long."""
    kind = ipywidgets.FloatSlider if isinstance(step, float) else ipywidgets.IntSlider
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=name,
        continuous_update=not wait,
        style={"description_width": "initial"},
        layout={"width": "270px"},
    )


def choice(name: str, options: Sequence[Any]) -> ipywidgets.ToggleButtons:
    """Buttons for values, or for (name, value); the first one is chosen. JupyterLab takes away the
    arrow keys from a menu, so that it can't be used with the keyboard."""
    style = {"description_width": "initial", "button_width": "auto"}
    return ipywidgets.ToggleButtons(options=options, description=name, style=style)


def checkbox(name: str) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(description=name, indent=False, layout={"width": "auto"})


# --- pictures -------------------------------------------------------------------------------------


def side_by_side(*pictures: str, caption: str = "") -> str:
    """HTML of pictures side by side, with a line of text below; narrow windows wrap them."""
    return (
        f'<div style="display:flex;flex-wrap:wrap">{"".join(pictures)}</div>'
        f'<div style="line-height:1.4">{escape(caption)}</div>'
    )


def picture(title: str, image: Tensor, side: int = 192) -> str:
    """HTML of an image, (3, H, W), with its title below. Few pixels are enlarged as squares."""
    pixels = "image-rendering:pixelated;" if image.shape[-1] < side else ""
    tag = f'<img alt="{escape(title)}" src="{data_url(image)}" '
    return _figure(title, tag + f'style="width:{side}px;{pixels}margin:0">', side)


def svg(title: str, size: float, shapes: Sequence[str], image: Tensor | None, side: int) -> str:
    """HTML of a drawing of size x size units, over an image, (3, H, W), with its title below."""
    light = f'<rect width="{size}" height="{size}" fill="#f4f4f4"/>'  # in a dark theme, too
    if image is not None:
        light = f'<image href="{data_url(image)}" width="{size}" height="{size}"/>'
    tag = f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {size} {size}" '
    return _figure(title, tag + f'width="{side}">{light}{"".join(shapes)}</svg>', side)


def dot(x: float, y: float, radius: float, color: str) -> str:
    outline = 'stroke="#444" stroke-width="0.3"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}" {outline}/>'


def data_url(image: Tensor) -> str:
    """A PNG file as a URL, of an image (3, H, W), float in [0, 1] or uint8."""
    array = to_image_array(image)
    if array.dtype != np.uint8:
        array = (255 * array).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _figure(title: str, content: str, width: int) -> str:
    style = f"margin:4px 8px 4px 0;width:{width}px;line-height:1.3"
    return f'<figure style="{style}">{content}<figcaption>{escape(title)}</figcaption></figure>'
