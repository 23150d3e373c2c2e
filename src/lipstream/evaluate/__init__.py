"""How good a result is: likeness to a reference, lips, videos side by side."""
