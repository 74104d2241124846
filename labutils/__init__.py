"""The module behind the notebooks of the course lab on how neural networks learn."""

__version__ = "0.1.0"
