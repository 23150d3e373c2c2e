"""What a sync costs and what it gives: `lipstream profile` and `lipstream bench` (see docs/measuring.md)."""
