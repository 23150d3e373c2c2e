"""A RunPod serverless handler. LIPSTREAM_MODEL names the model.

Input: {"video": address, "speech": address, "settings": fields of SyncSettings}. Output: {"video": an address in the
bucket that BUCKET_ENDPOINT_URL names, or else base64, "frames", "duration_s", "wall_s"}.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import runpod
from runpod.serverless.utils import download_files_from_urls, rp_upload

from lipstream import LipstreamError, LipSync, Progress, SyncSettings


def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Answer one job. What is wrong with it comes back as {"error": one line}."""
    asked = job["input"]
    try:
        settings = SyncSettings.from_dict(asked.get("settings", {}))
        files = download_files_from_urls(job["id"], [asked["video"], asked["speech"]])
        if None in files:
            return {"error": "a file cannot be downloaded"}
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "lip-synced.mp4"
            result = _model()(*files, output, settings, on_progress=lambda progress: _report(job, progress))
            if os.environ.get("BUCKET_ENDPOINT_URL"):
                video = rp_upload.upload_file_to_bucket(f"{job['id']}.mp4", str(output))
            else:
                video = base64.b64encode(output.read_bytes()).decode()
        return {"video": video, "frames": result.frames, "duration_s": result.duration_s, "wall_s": result.wall_s}
    except KeyError as error:
        return {"error": f"the input has no {error.args[0]}"}
    except LipstreamError as error:
        return {"error": str(error)}
    finally:
        shutil.rmtree(Path("jobs") / job["id"], ignore_errors=True)


@lru_cache(maxsize=1)
def _model() -> LipSync:
    return LipSync.load(os.environ.get("LIPSTREAM_MODEL", "latentsync-1.6"))


def _report(job: dict[str, Any], progress: Progress) -> None:
    runpod.serverless.progress_update(job, f"{progress.frames} of {progress.n_frames} frames")


if __name__ == "__main__":
    _model()
    runpod.serverless.start({"handler": handler})
