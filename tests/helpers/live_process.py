"""`lipstream live` with a session that needs no model: python live_process.py OPTIONS."""

from __future__ import annotations

import sys
from typing import Any

from helpers.live import AVATAR, DrawnSession
from lipstream.cli.main import main
from lipstream.lipsync import LipSync
from lipstream.live.avatar import Avatar


class Loaded:
    """What LipSync.load returns; only `live` is asked of it."""

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        print("the model is closed", flush=True)

    def live(self, avatar: Any) -> DrawnSession:
        assert avatar is AVATAR
        return DrawnSession()


if __name__ == "__main__":
    vars_of: Any = Avatar
    vars_of.open = classmethod(lambda cls, path: AVATAR)
    to_load: Any = LipSync
    to_load.load = classmethod(lambda cls, model, runtime: Loaded())
    sys.exit(main(["live", "drawn.avatar", *sys.argv[1:]]))
