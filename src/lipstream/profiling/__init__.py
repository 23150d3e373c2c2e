"""Profiling of a run: time per stage, per Python call, and a trace."""
