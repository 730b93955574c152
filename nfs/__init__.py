"""nfs: the training stack for NeRFFaceSpeech. Importing this package imports no torch."""

__version__ = "0.1.0"
