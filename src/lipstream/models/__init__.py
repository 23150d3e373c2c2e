"""The networks, and what finds, checks and loads their weights."""
