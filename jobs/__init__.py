"""Entry points: `python -m jobs.<job> CONFIG.yaml [key.path=value ...]`."""
