"""How the bundled model is made, and fine-tuning on one's own footage. Nothing outside this folder imports it."""
