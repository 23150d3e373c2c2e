"""The README's small animated picture: the bundled sample beside its lip-synced version.

python tools/make_readme_picture.py demo/lipstream-demo.mp4 docs/sample.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image

from lipstream.bundled import sample

HEIGHT = 256
EVERY = 2  # of 25 frames a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("synced", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    pairs = zip(pictures(sample.VIDEO), pictures(args.synced), strict=True)
    images = [Image.fromarray(np.concatenate(pair, axis=1)) for pair in pairs]
    first, *others = images
    first.save(args.picture, save_all=True, append_images=others, duration=40 * EVERY, loop=0, quality=70, method=4)
    print(f"{args.picture}: {len(images)} pictures, {args.picture.stat().st_size / 1e3:.0f} kB")


def pictures(video: Path) -> list[np.ndarray]:
    """Every second frame, the middle of it around the face, HEIGHT px high."""
    with av.open(str(video)) as container:
        frames = [frame for index, frame in enumerate(container.decode(video=0)) if index % EVERY == 0]
    images = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in frames]
    width, height = images[0].size
    box = (width // 6, 0, width * 5 // 6, height * 2 // 3)
    return [np.asarray(image.crop(box).resize((HEIGHT, HEIGHT))) for image in images]


if __name__ == "__main__":
    main()
