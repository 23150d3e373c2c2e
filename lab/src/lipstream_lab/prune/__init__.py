"""The search for layers that a model can spare."""
