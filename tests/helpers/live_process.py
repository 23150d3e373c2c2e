"""`lipstream live` with a session that needs no model: python live_process.py OPTIONS."""

from __future__ import annotations

import sys
from typing import Any

from helpers.live import AVATAR, DrawnSession
from lipstream import lipsync
from lipstream.cli.main import main
from lipstream.live.avatar import Avatar


class Loaded:
    """Stands in for LipSync."""

    model = detector = runtime = None

    def __init__(self, *shared: Any) -> None:
        pass

    @classmethod
    def load(cls, model: str, runtime: Any) -> Loaded:
        return cls()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        print("the model is closed", flush=True)

    def live(self, avatar: Any) -> DrawnSession:
        assert avatar is AVATAR
        return DrawnSession()


if __name__ == "__main__":
    lipsync.LipSync = Loaded
    Avatar.open = lambda path: AVATAR
    sys.exit(main(["live", "drawn.avatar", *sys.argv[1:]]))
