"""Portrait plus speech to video: expression tracks, ray deformation, mouth, streamed frames."""
