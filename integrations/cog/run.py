"""A cog runner: `cog run -i video=@in.mp4 -i speech=@speech.wav`. LIPSTREAM_MODEL names the model."""

from __future__ import annotations

import os
import tempfile

from cog import BaseRunner, Input, Path

from lipstream import LipSync, SyncSettings


class Runner(BaseRunner):
    """Loads the model once, and answers a request at a time."""

    def setup(self) -> None:
        self.sync = LipSync.load(os.environ.get("LIPSTREAM_MODEL", "latentsync-1.6"))

    def run(
        self,
        video: Path = Input(description="a video of somebody who has agreed to this"),
        speech: Path = Input(description="a recording of what the mouth is to say"),
        preset: str = Input(
            default="exact", choices=["exact", "balanced", "fast"], description="work against fidelity"
        ),
        num_inference_steps: int = Input(default=0, ge=0, le=100, description="denoising steps; 0: the model's own"),
        guidance_scale: float = Input(default=0, ge=0, le=100, description="weight of the speech; 0: the model's own"),
        face: str = Input(default="largest", description="largest, left, right, a number from the left, or X,Y in px"),
        seed: int = Input(default=1247, ge=0, description="of the noise"),
    ) -> Path:
        settings = SyncSettings(
            preset=preset,
            num_inference_steps=num_inference_steps or None,
            guidance_scale=guidance_scale or None,
            face=None if face == "largest" else face,
            seed=seed,
        )
        output = Path(tempfile.mkdtemp()) / "lip-synced.mp4"
        self.sync(video, speech, output, settings)
        return output
