"""Cameras, rays, rotations and volume rendering: pure tensor maths."""
