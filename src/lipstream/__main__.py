"""`python -m lipstream` is the command line."""

from lipstream.cli import script

script()
