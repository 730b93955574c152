"""Faces in pictures and clips: detection, tracking, 68 landmarks, alignment, clip preprocessing."""
