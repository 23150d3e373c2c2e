"""Finding a model: its configuration, its files in a folder or the hub's cache, and downloads of what is missing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from lipstream.errors import ModelError
from lipstream.models import hub
from lipstream.models.catalogue import BUNDLED, CONFIG_NAME, EXAMPLE, NAMES, PUBLISHED, Hub, ModelConfig
from lipstream.models.hub import HubFile
from lipstream.models.names import check_model

logger = logging.getLogger(__name__)

_BUNDLED = Path(str(resources.files("lipstream.bundled")))
CONFIGS = Path(str(resources.files("lipstream.models"))) / "configs"
_UNET_NAME = "latentsync_unet.pt"


@dataclass(frozen=True)
class ModelPaths:
    """The files of one model on this machine."""

    unet: Path
    audio_encoder: Path
    vae_config: Path
    vae_weights: Path


def read_config(model: str | Path) -> tuple[ModelConfig, Path | None]:
    """Return the configuration of a named model or a folder, and the folder its files lie in (None: on the hub).

    A folder's lipstream.json may name another model as its `base` and give only what differs. A folder of published
    files needs none: it is recognised by the size of its U-Net file.
    Raises ModelError for an unknown name, or a folder without a readable lipstream.json.
    """
    values, origin, folder = read_config_values(model)
    return ModelConfig.from_dict(values, origin), folder


def read_config_values(model: str | Path) -> tuple[dict[str, Any], str, Path | None]:
    """Return the keys and values of a configuration, where they come from, and the folder. Raises ModelError."""
    name = str(model)
    if name in PUBLISHED:
        return _published_values(name), name, None
    check_model(model)
    folder = _BUNDLED / name if name in BUNDLED else Path(model)
    if not folder.is_dir():
        raise ModelError("missing: lipstream is not completely installed", file=folder, fix="install lipstream again")
    return _folder_values(folder), str(folder / CONFIG_NAME), folder


def _published_values(name: str) -> dict[str, Any]:
    path = CONFIGS / f"{name}.json"
    return _with_base(json.loads(path.read_text("utf-8")), path)


def _with_base(values: dict[str, Any], path: Path) -> dict[str, Any]:
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in PUBLISHED:
        raise ModelError(f"base {base!r} is not one of {', '.join(PUBLISHED)}", file=path, fix=f"write {EXAMPLE}")
    return {**_published_values(base), **values}


def _folder_values(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    values: Any = {}
    if path.is_file():
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"not readable as JSON ({error})", file=path, fix=f"write {EXAMPLE}") from error
        if not isinstance(values, dict):
            raise ModelError("must hold a JSON object", file=path, fix=f"write {EXAMPLE}")
    if "format" in values or "base" in values:
        return _with_base(values, path)
    named = _published_by_size(folder / _UNET_NAME)
    if named is None:
        lack = f"has no {CONFIG_NAME}" if not path.is_file() else f"{CONFIG_NAME} has neither base nor format"
        raise ModelError(
            f"{lack}, and no {_UNET_NAME} of a published size says which model it is",
            file=folder,
            fix=f"write a {CONFIG_NAME} that does: {EXAMPLE}",
        )
    return _with_base({**values, "base": named}, path)


def _published_by_size(path: Path) -> str | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    return next((name for name, pinned in _published_unets().items() if size == pinned), None)


def _published_unets() -> dict[str, int]:
    """Return the published U-Net files' sizes, bytes."""
    return {name: int(_published_values(name)["hub"]["pinned"]["unet"]["size_bytes"]) for name in PUBLISHED}


def hub_files(config: ModelConfig, origin: Hub) -> ModelFilesOnHub:
    """Return a model's files on the hub."""
    pin = origin.pinned.get
    files = config.files
    return ModelFilesOnHub(
        unet=HubFile(origin.repo, files.unet, origin.revision, pin("unet")),
        audio_encoder=HubFile(origin.repo, files.audio_encoder, origin.revision, pin("audio_encoder")),
        vae_config=HubFile(origin.vae_repo, Path(files.vae_config).name, origin.vae_revision, pin("vae_config")),
        vae_weights=HubFile(origin.vae_repo, Path(files.vae_weights).name, origin.vae_revision, pin("vae_weights")),
    )


@dataclass(frozen=True)
class ModelFilesOnHub:
    """The files of one model on the hub."""

    unet: HubFile
    audio_encoder: HubFile
    vae_config: HubFile
    vae_weights: HubFile


_ROLES = ("unet", "audio_encoder", "vae_config", "vae_weights")


def locate(config: ModelConfig, folder: Path | None, *, download: bool = True) -> ModelPaths:
    """Return the model's files: in its folder, else in the hub's cache, else downloaded into it.

    A folder without a VAE takes that of the hub's cache. Raises ModelError that names the missing file, the hub's
    reason, or a U-Net file that is another published model's.
    """
    found = _present(config, folder)
    missing = [role for role in _ROLES if role not in found]
    if missing and folder is not None:
        raise _missing_in_folder(config, folder, missing)
    if missing and not download:
        file = getattr(hub_files(config, _hub(config)), missing[0])
        raise ModelError("not on this machine", file=str(file), fix=f"run `lipstream models download {config.name}`")
    if missing:
        found |= _download(config, missing, config.name, announce=logger.warning)
    paths = ModelPaths(**found)
    if folder is not None:
        _check_unet_size(config, paths.unet)
    return paths


def _hub(config: ModelConfig) -> Hub:
    if config.hub is None:
        raise ModelError(f"the model {config.name} is on no hub", fix="pass its folder with --model FOLDER")
    return config.hub


def _present(config: ModelConfig, folder: Path | None) -> dict[str, Path]:
    """Return the files that are on this machine, by role."""
    on_hub = None if config.hub is None else hub_files(config, config.hub)
    if folder is None:
        paths = {role: hub.cached(getattr(hub_files(config, _hub(config)), role)) for role in _ROLES}
        return {role: path for role, path in paths.items() if path is not None}
    files = config.files
    places = {role: folder / getattr(files, role) for role in _ROLES}
    found = {role: path for role, path in places.items() if path.is_file()}
    if on_hub is not None and not found.keys() & {"vae_config", "vae_weights"}:
        vae = {role: hub.cached(getattr(on_hub, role)) for role in ("vae_config", "vae_weights")}
        found |= {role: path for role, path in vae.items() if path is not None}
    return found


def _missing_in_folder(config: ModelConfig, folder: Path, missing: list[str]) -> ModelError:
    place = folder / getattr(config.files, missing[0])
    message, fix = f"missing; the model {config.name} cannot be loaded without it", "put it there"
    if config.hub is not None and set(missing) == {"vae_config", "vae_weights"}:
        message += f"; it is published as {config.hub.vae_repo}"
        fix = f"run `lipstream models download {folder}`, which fetches only what is missing"
    elif config.hub is not None:
        fix = f"copy it there from {getattr(hub_files(config, config.hub), missing[0])} of the hub"
    return ModelError(message, file=place, fix=fix)


def _check_unet_size(config: ModelConfig, path: Path) -> None:
    """Refuse a U-Net file that is exactly as long as another published model's of another resolution.

    1.5 and 1.6 have the same tensors, so the wrong one loads and generates garbage. Any other size may be fine-tuned or
    converted weights: a folder that gives itself no name of its own is warned about.
    """
    pin = None if config.hub is None else config.hub.pinned.get("unet")
    size = path.stat().st_size
    if pin is None or size == pin.size_bytes:
        return
    for name, published in _published_unets().items():
        if size == published and _published_values(name)["resolution"] != config.resolution:
            raise ModelError(
                f"is the U-Net of {name} by its size ({size} bytes), but the folder says {config.name}"
                f" ({config.resolution} px)",
                file=path,
                fix=f'write {{"base": "{name}"}} into {CONFIG_NAME}, or put the file of {config.name} there',
            )
    if config.name in PUBLISHED:
        logger.warning(
            "%s: %d bytes, not a published file's size (%d); loaded as %s", path, size, pin.size_bytes, config.name
        )


def download_model(
    model: str | Path,
    *,
    repo: str | None = None,
    revision: str | None = None,
    announce: Callable[[str], None] = logger.info,
) -> Path:
    """Download what is missing of a model, verified by SHA-256, and return the folder that its U-Net lies in.

    model: a published name, or a folder that lacks its VAE. repo: a mirror of the model's own repository, trusted by
    hash. revision: another commit, tag or branch of the repository, whose files are not checked; load them with
    --model FOLDER. announce: called with what is about to be fetched, in one line. Raises ModelError.
    """
    config, folder = read_config(model)
    if config.name not in PUBLISHED and (repo or revision):
        raise ModelError(f"{model} is not a published model", fix=f"name one of {', '.join(PUBLISHED)}")
    if revision is not None:
        return _download_revision(config, repo, revision, announce)
    found = _present(config, folder)
    missing = [role for role in _ROLES if role not in found]
    if folder is not None and not set(missing) <= {"vae_config", "vae_weights"}:
        raise _missing_in_folder(config, folder, missing)
    if missing:
        found |= _download(config, missing, str(model), repo=repo, announce=announce)
    return found["unet"].parent


def _download(
    config: ModelConfig,
    roles: list[str],
    model: str,
    *,
    repo: str | None = None,
    announce: Callable[[str], None],
) -> dict[str, Path]:
    origin = _hub(config)
    files = {role: getattr(hub_files(config, origin), role) for role in roles}
    repos = dict.fromkeys(repo if repo and file.repo == origin.repo else file.repo for file in files.values())
    pins = [file.pin for file in files.values()]
    size = f", {sum(pin.size_bytes for pin in pins if pin) / 1e9:.1f} GB" if all(pins) else ""
    announce(f"{config.name}: {len(files)} files{size} to fetch from {' and '.join(repos)}")
    found = {}
    for role, file in files.items():
        mirror = replace(file, repo=repo, revision="main") if repo and file.repo == origin.repo else None
        found[role] = hub.fetch(file, model, mirror)
    return found


def _download_revision(config: ModelConfig, repo: str | None, revision: str, announce: Callable[[str], None]) -> Path:
    origin = _hub(config)
    unchecked = {role: pin for role, pin in origin.pinned.items() if role.startswith("vae")}
    other = replace(config, hub=replace(origin, repo=repo or origin.repo, revision=revision, pinned=unchecked))
    announce(f"{config.name}: revision {revision} of {repo or origin.repo}: size and SHA-256 are not checked")
    present = _present(other, None)
    missing = [role for role in _ROLES if not (role.startswith("vae") and role in present)]
    snapshot = _download(other, missing, config.name, announce=announce)["unet"].parent
    if not (snapshot / CONFIG_NAME).exists():
        (snapshot / CONFIG_NAME).write_text(json.dumps({"base": config.name}) + "\n", "utf-8")
    announce(f"{config.name}: load this revision with --model {snapshot}")
    return snapshot


@dataclass(frozen=True)
class ModelStatus:
    """A named model: its resolution, px; where its files are, or how to get them; their size, bytes."""

    name: str
    resolution: int
    is_here: bool
    place: str
    size_bytes: int


def describe_models() -> list[ModelStatus]:
    """Return the named models and which of them are on this machine. Asks no network.

    Raises ModelError only where lipstream itself is not completely installed.
    """
    return [_status(name) for name in NAMES]


def _status(name: str) -> ModelStatus:
    config, folder = read_config(name)
    try:
        paths = locate(config, folder, download=False)
    except ModelError:
        pinned = {} if config.hub is None else config.hub.pinned
        size = sum(pin.size_bytes for pin in pinned.values())
        place = f"not on this machine ({size / 1e9:.1f} GB); run `lipstream models download {name}`"
        return ModelStatus(name, config.resolution, False, place, size)
    size = sum(getattr(paths, role).stat().st_size for role in _ROLES)
    place = "bundled" if name in BUNDLED else str(paths.unet.parent)
    return ModelStatus(name, config.resolution, True, place, size)
