"""One steerable reward model per community, on Ray."""

__version__ = "0.1.0"
