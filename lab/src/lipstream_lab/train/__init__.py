"""Training of models, such as the bundled one."""
