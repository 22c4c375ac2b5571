"""Declarative sweeps for RL post-training. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
