"""Hyper-parameter searches with Ray Tune; they compose jobs and hold no training code."""
