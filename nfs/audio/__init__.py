"""Audio: mel front end, Audio2Exp and its training. Importing this package loads no torch.

Sources: the SadTalker audio modules and the NeRFFaceSpeech feedback loop (spec/audio.md).
"""

from importlib import import_module

_EXPORTS = {
    "melspectrogram": "nfs.audio.mel",
    "mel_windows": "nfs.audio.mel",
    "AudioEncoder": "nfs.audio.encoder",
    "Audio2Exp": "nfs.audio.audio2exp",
    "predict_expressions": "nfs.audio.audio2exp",
    "load_audio2exp": "nfs.audio.builders",
    "train_worker": "nfs.audio.builders",
    "search_trial": "nfs.audio.search",
}

__all__ = [
    "Audio2Exp",
    "AudioEncoder",
    "load_audio2exp",
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
