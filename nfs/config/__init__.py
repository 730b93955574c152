"""Typed configuration: one root model per job, one YAML per run. Imports no torch, ray, mlflow."""
