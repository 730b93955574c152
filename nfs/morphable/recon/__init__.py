"""Coefficients of a face from one picture: Deep3D's regressor, its training and its use."""
