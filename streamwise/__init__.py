"""streamwise: learning from streams, one sample at a time."""

__version__ = "0.1.0"
