"""The version of lipstream."""

__version__ = "0.2.0"
