"""The command line: options to settings to LipSync. The only package that prints."""

from lipstream.cli.main import main, script

__all__ = ["main", "script"]
