"""Video, audio and pictures: decoding, encoding, warps and value ranges (PyAV and Pillow)."""

from nfs.media.audio import AudioClip, read_audio
from nfs.media.video import VideoInfo, VideoWriter, probe, read_frames

__all__ = ["AudioClip", "VideoInfo", "VideoWriter", "probe", "read_audio", "read_frames"]
