"""Import of original checkpoints without executing anything they contain."""

from nfs.pretrained.readers import read_state_dict
from nfs.pretrained.registry import FAMILIES, load_original

__all__ = ["FAMILIES", "load_original", "read_state_dict"]
