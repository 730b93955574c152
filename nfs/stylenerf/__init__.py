"""StyleNeRF: generator, discriminator, losses and their training task.

Names are imported on first use, so `import nfs.stylenerf` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfs.stylenerf.discriminator import Discriminator
    from nfs.stylenerf.field_options import FieldOptions, InputSpec
    from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
    from nfs.stylenerf.rendering import RenderDraws
    from nfs.stylenerf.spec import CameraPrior, DiscriminatorSpec, GeneratorSpec

_HOMES = {
    "CameraPrior": "spec",
    "Discriminator": "discriminator",
    "DiscriminatorSpec": "spec",
    "FieldOptions": "field_options",
    "Generator": "generator",
    "GeneratorSpec": "spec",
    "InputSpec": "field_options",
    "RenderDraws": "rendering",
    "RenderOptions": "generator",
    "Rendering": "generator",
}

__all__ = [
    "CameraPrior",
    "Discriminator",
    "DiscriminatorSpec",
    "FieldOptions",
    "Generator",
    "GeneratorSpec",
    "InputSpec",
    "RenderDraws",
    "RenderOptions",
    "Rendering",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
