"""`python -m lipstream.cli` is the command line."""

from lipstream.cli import script

script()
