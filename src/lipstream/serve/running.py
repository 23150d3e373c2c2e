"""The threads of a server or a worker's process: one for each worker, and those of the upkeep."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from lipstream.errors import LipstreamError
from lipstream.serve.addresses import IsAllowed, is_public
from lipstream.serve.database import Database
from lipstream.serve.files import Files
from lipstream.serve.render import Renderer
from lipstream.serve.settings import WorkSettings
from lipstream.serve.upkeep import keepers
from lipstream.serve.worker import Worker

logger = logging.getLogger(__name__)

_STOP_S = 30.0


class Running:
    """Workers and the upkeep, at work from the beginning until `stop`. errors: of workers that have ended with one."""

    def __init__(
        self,
        database: Database,
        files: Files,
        settings: WorkSettings,
        renderers: Sequence[Renderer],
        is_allowed: IsAllowed = is_public,
    ) -> None:
        self.errors: list[LipstreamError] = []
        self._workers = [Worker(database, files, settings, one) for one in renderers]
        self._threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in self._workers]
        self._keepers = keepers(database, files, settings, is_allowed)
        for thread in (*self._threads, *self._keepers):
            thread.start()

    @property
    def is_working(self) -> bool:
        """Whether all workers are there."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Let workers give their jobs back, and end all threads."""
        for worker in self._workers:
            worker.stop.set()
        for thread in self._threads:
            thread.join(_STOP_S)
        for keeper in self._keepers:
            keeper.stop()

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except LipstreamError as error:
            self.errors.append(error)
            logger.error("a worker has ended: %s", error)
        except Exception:
            logger.exception("a worker has ended")
            raise
