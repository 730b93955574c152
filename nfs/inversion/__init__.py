"""From frames of a person to a latent and a tuned generator.

Names are imported on first use, so `import nfs.inversion` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfs.inversion.calibration import calibrate as calibrate
    from nfs.inversion.identity import Identity as Identity
    from nfs.inversion.identity import load_identity as load_identity
    from nfs.inversion.identity import save_identity as save_identity
    from nfs.inversion.projector import Projection as Projection
    from nfs.inversion.projector import Start as Start
    from nfs.inversion.projector import project as project
    from nfs.inversion.search import search_trial as search_trial
    from nfs.inversion.settings import ProjectSettings as ProjectSettings
    from nfs.inversion.settings import TuneSettings as TuneSettings
    from nfs.inversion.tuning import TuneOptions as TuneOptions
    from nfs.inversion.tuning import Tuning as Tuning
    from nfs.inversion.tuning import tune as tune

_HOMES = {
    "Identity": "identity",
    "ProjectSettings": "settings",
    "Projection": "projector",
    "Start": "projector",
    "TuneOptions": "tuning",
    "TuneSettings": "settings",
    "Tuning": "tuning",
    "calibrate": "calibration",
    "load_identity": "identity",
    "project": "projector",
    "save_identity": "identity",
    "search_trial": "search",
    "tune": "tuning",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
