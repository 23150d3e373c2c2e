"""Where a run's time goes: per stage, per call, on a trace."""
