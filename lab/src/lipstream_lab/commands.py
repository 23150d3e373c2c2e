"""The commands that this distribution adds to `lipstream`. Imports nothing heavy: `lipstream --help` lists them."""

from __future__ import annotations

from lipstream.cli.commands import Command

BENCH = Command("compare settings: speed, memory and quality", "lipstream_lab.cli", "add_bench_arguments", "bench")
PRUNE = Command("find the layers that a model can spare", "lipstream_lab.cli", "add_prune_arguments", "prune")
TRAIN = Command("make a model: data, vae, unet, finish, bundle", "lipstream_lab.train.cli")
