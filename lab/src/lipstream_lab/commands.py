"""Commands added to `lipstream` by entry points. Imports nothing heavy, since `lipstream --help` loads it."""

from __future__ import annotations

from lipstream.cli.commands import Command

BENCH = Command("compare settings: speed, memory and quality", "lipstream_lab.cli", "add_bench_arguments", "bench")
PRUNE = Command("find layers that a model can do without", "lipstream_lab.cli", "add_prune_arguments", "prune")
TRAIN = Command("train a model: data, vae, unet, finish, bundle", "lipstream_lab.train.cli")
