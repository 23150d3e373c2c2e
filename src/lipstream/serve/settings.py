"""What `lipstream serve`, `worker` and `live` can be set to: limits, times, places. Needs no extra."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from platformdirs import user_data_path

from lipstream.errors import SettingsError
from lipstream.models.names import NAMES, check_model
from lipstream.scale.storage import is_address
from lipstream.serve.quantities import n_bytes, seconds
from lipstream.settings_record import Settings, setting


@dataclass(frozen=True)
class PlaceSettings(Settings):
    """Where tokens, jobs and files are. database: an SQLAlchemy URL; None: SQLite. data: folder or fsspec address."""

    database: str | None = setting(
        None, "SQLAlchemy URL of the jobs' database", group="service", metavar="URL", unset="SQLite in the data folder"
    )
    data: str | None = setting(
        None,
        "folder, or fsspec address, for uploads and results",
        group="service",
        metavar="DIR",
        unset="in the user's data folder",
    )

    @property
    def data_place(self) -> str:
        """The folder or address of uploads and results."""
        return self.data or str(user_data_path("lipstream") / "service" / "files")

    @property
    def database_url(self) -> str:
        """The URL of the database; the folder of the default one is made."""
        if self.database is not None:
            return self.database
        local = self.data is not None and not is_address(self.data)
        folder = Path(str(self.data)) if local else user_data_path("lipstream") / "service"
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder.absolute() / 'jobs.sqlite'}"


@dataclass(frozen=True)
class ListenSettings(Settings):
    """Where a server listens, and whom it lets in."""

    host: str = setting("127.0.0.1", "address to listen on", group="service", metavar="HOST")
    port: int = setting(7860, "port to listen on; 0: any", group="service", metavar="PORT", low=0, high=65535)
    public_host: str | None = setting(
        None,
        "other names that this server is reached by, with commas",
        group="service",
        metavar="NAME,...",
        unset="none",
    )
    insecure: bool = setting(False, "listen beyond this machine without tokens", group="service")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False


@dataclass(frozen=True)
class WorkSettings(PlaceSettings):
    """What a server and its workers share: where jobs and files are, which models are served, how long a job may take.

    model: names or folders, separated by commas; the first is the default. Raises SettingsError.
    """

    model: str = setting(
        "tiny", "models to serve, with commas; the first is the default", group="service", metavar="NAME|FOLDER,..."
    )
    keep: str = setting("24h", "how long a job's files are kept once it has ended", group="service", metavar="TIME")
    lease: str = setting("60s", "a worker that is silent for so long loses its job", group="service", metavar="TIME")
    idle: str = setting("15m", "free an idle model's memory after this time", group="service", metavar="TIME")
    max_disk: str = setting("20GB", "all uploads and results together", group="limits", metavar="SIZE")
    max_wall: str = setting("1h", "time that a job may take", group="limits", metavar="TIME")
    max_attempts: int = setting(
        3, "workers that a job may lose before it has failed", group="limits", metavar="N", low=1, high=100
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "lease", "idle", "max_wall"):
            seconds(name, getattr(self, name))
        n_bytes("max_disk", self.max_disk)
        if not self.model_names:
            raise SettingsError("model names no model", setting="model")

    @property
    def models(self) -> dict[str, str]:
        """The served models: what a client calls each, and the name or folder that it is loaded from."""
        given = [one.strip() for one in self.model.split(",") if one.strip()]
        return {one if one in NAMES else Path(one).name: one for one in given}

    @property
    def model_names(self) -> tuple[str, ...]:
        """What clients call the served models."""
        return tuple(self.models)

    def check_models(self) -> None:
        """Raise ModelError for a model that is neither a name nor a folder."""
        for one in self.models.values():
            check_model(one)

    @property
    def keep_s(self) -> float:
        """`keep` in seconds."""
        return seconds("keep", self.keep)

    @property
    def lease_s(self) -> float:
        """`lease` in seconds."""
        return seconds("lease", self.lease)

    @property
    def idle_s(self) -> float:
        """`idle` in seconds."""
        return seconds("idle", self.idle)

    @property
    def max_wall_s(self) -> float:
        """`max_wall` in seconds."""
        return seconds("max_wall", self.max_wall)

    @property
    def max_disk_bytes(self) -> int:
        """`max_disk` in bytes."""
        return n_bytes("max_disk", self.max_disk)


@dataclass(frozen=True)
class ServiceSettings(ListenSettings, WorkSettings):
    """What a server is set to besides: where it listens, and what it accepts. Raises SettingsError."""

    no_worker: bool = setting(False, "take requests only: workers run elsewhere", group="service")
    allow_urls: bool = setting(
        False, "let clients name public http(s) addresses of videos, recordings and webhooks", group="service"
    )
    max_upload: str = setting("1GB", "video and recording of a job together", group="limits", metavar="SIZE")
    max_duration: str = setting("10m", "length of the speech", group="limits", metavar="TIME")
    max_pixels: int = setting(
        3840 * 2160, "pixels of a frame", group="limits", metavar="N", low=64 * 64, high=8192 * 8192
    )
    max_resolution: int = setting(
        1024, "side of the crop that a job may ask for, px", group="limits", metavar="PX", low=64, high=8192
    )
    max_client_jobs: int = setting(
        10, "jobs of a client that wait or run", group="limits", metavar="N", low=1, high=100_000
    )
    max_queue: int = setting(100, "jobs that wait", group="limits", metavar="N", low=1, high=1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        seconds("max_duration", self.max_duration)
        n_bytes("max_upload", self.max_upload)

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload` in bytes."""
        return n_bytes("max_upload", self.max_upload)

    @property
    def max_duration_s(self) -> float:
        """`max_duration` in seconds."""
        return seconds("max_duration", self.max_duration)
