"""C text from the templates beside the modules that use them."""

from __future__ import annotations

import importlib.resources

__all__ = ["pointwise_text", "template"]


def template(room: str, name: str, **fill: str) -> str:
    """Return the text of ``ctrlnet/kernels/<room>/<name>`` with every ``@KEY@`` filled in."""
    text = importlib.resources.files(f"ctrlnet.kernels.{room}").joinpath(name).read_text()
    for key, value in fill.items():
        text = text.replace(f"@{key}@", value)
    return text


def pointwise_text(c_text: tuple[str, str, str]) -> str:
    """Return the C functions of an activation and its derivatives."""
    names = ("activate", "slope", "curvature")
    return "\n".join(
        f"static inline V {name}(V z) {{ return {text}; }}" for name, text in zip(names, c_text, strict=True))
