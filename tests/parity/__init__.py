"""Checks against recorded outputs of the original projects."""
