"""Audio: mel front end, Audio2Exp and its training. Importing this package loads no torch.

Sources: the SadTalker audio modules and the NeRFFaceSpeech feedback loop (spec/audio.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfs.audio.audio2exp import Audio2Exp as Audio2Exp
    from nfs.audio.audio2exp import predict_expressions as predict_expressions
    from nfs.audio.builders import load_checkpoint as load_checkpoint
    from nfs.audio.builders import train_worker as train_worker
    from nfs.audio.encoder import AudioEncoder as AudioEncoder
    from nfs.audio.mel import mel_windows as mel_windows
    from nfs.audio.mel import melspectrogram as melspectrogram
    from nfs.audio.search import search_trial as search_trial

_EXPORTS = {
    "melspectrogram": "nfs.audio.mel",
    "mel_windows": "nfs.audio.mel",
    "AudioEncoder": "nfs.audio.encoder",
    "Audio2Exp": "nfs.audio.audio2exp",
    "predict_expressions": "nfs.audio.audio2exp",
    "load_checkpoint": "nfs.audio.builders",
    "train_worker": "nfs.audio.builders",
    "search_trial": "nfs.audio.search",
}

__all__ = [
    "Audio2Exp",
    "AudioEncoder",
    "load_checkpoint",
    "mel_windows",
    "melspectrogram",
    "predict_expressions",
    "search_trial",
    "train_worker",
]


def __getattr__(name: str) -> object:
    """Import the module behind an exported name on first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
