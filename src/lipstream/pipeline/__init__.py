"""The pipeline: the stages from reading to writing, and the threads they run in."""
