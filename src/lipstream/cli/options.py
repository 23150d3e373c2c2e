"""Options that several commands share, built from the fields of the settings records."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

from lipstream.errors import SettingsError
from lipstream.preset_file import read_preset
from lipstream.presets import PRESETS
from lipstream.settings import ALL_DEVICES, RuntimeSettings, SyncSettings, device_names
from lipstream.settings_record import Settings, flag
from lipstream.validation import alternatives, choices, type_hints

_GROUPS = ("input and output", "quality", "speed", "hardware", "messages")

S = TypeVar("S", bound=Settings)
Groups = Mapping[str, argparse._ArgumentGroup]


class Store(argparse.Action):
    """Stores an option's value, and its name among those that were given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = given(namespace) | {self.dest}


def given(args: argparse.Namespace) -> frozenset[str]:
    """Return the names of the settings' fields that were given as options, whatever their values."""
    flags = {f.name for record in (SyncSettings, RuntimeSettings) for f in fields(record)}
    switched_on = {name for name in flags if getattr(args, name, None) is True}
    return frozenset(getattr(args, "given", ())) | switched_on


def option_groups(parser: argparse.ArgumentParser) -> Groups:
    """Add the headings under which options stand in --help, in their order."""
    return {title: parser.add_argument_group(title) for title in _GROUPS}


def add_sync_options(groups: Groups, actions: Mapping[str, type[Store]] = MappingProxyType({})) -> None:
    """Add --model and the fields of SyncSettings. actions: of fields that are stored otherwise than as they are."""
    groups["quality"].add_argument(
        "--model", default="tiny", metavar="NAME|FOLDER", help="see `lipstream models list` [tiny]"
    )
    add_fields(groups, SyncSettings, actions=actions)


def take_preset_files(parser: argparse.ArgumentParser) -> None:
    """Let --preset name a file too; `apply_preset_file` is then called before settings are made."""
    preset = next(action for action in parser._actions if action.dest == "preset")
    names = tuple(preset.choices or ())
    preset.choices, preset.metavar = None, f"{'|'.join(names)}|FILE.toml"
    preset.help = f"{preset.help}; a file is what `lipstream tune` wrote".replace(" [exact]", "") + " [exact]"


def apply_preset_file(args: argparse.Namespace) -> None:
    """Take the model and the settings of the file that --preset names; options that were given come before it.

    Raises InputError, and SettingsError for a file that is of another model than the one given.
    """
    if args.preset in PRESETS or not args.preset.endswith(".toml"):
        return
    path = Path(args.preset)
    preset = read_preset(path)
    if args.model is not None and str(args.model) != preset.model:
        raise SettingsError(
            f"it is for the model {preset.model}, not for {args.model}",
            file=path,
            fix="leave --model out, or tune that model",
        )
    args.model, args.preset = preset.model, "exact"
    for name, value in {**preset.sync, **preset.runtime}.items():
        if name not in given(args):
            setattr(args, name, tuple(value) if isinstance(value, list) else value)


def add_runtime_options(groups: Groups, **defaults: Any) -> None:
    """Add the fields of RuntimeSettings. defaults: in place of the record's own."""
    add_fields(groups, RuntimeSettings, **defaults)


def add_fields(
    groups: Groups,
    record: type[Settings],
    names: Sequence[str] | None = None,
    actions: Mapping[str, type[Store]] = MappingProxyType({}),
    **defaults: Any,
) -> None:
    """Add one option per field of a settings record, each in its group; only the fields of these names if given."""
    for f in fields(record):
        if names is not None and f.name not in names:
            continue
        hint, default = type_hints(record)[f.name], defaults.get(f.name, f.default)
        _add_field(groups[f.metadata["group"]], f, hint, default, actions.get(f.name, Store))


def _add_field(
    group: argparse._ArgumentGroup, f: Field[Any], hint: Any, default: Any, action: type[argparse.Action]
) -> None:
    if hint is bool:
        group.add_argument(flag(f), dest=f.name, action="store_true", help=f.metadata["help"])
        return
    shown = f.metadata["unset"] if default is None else default
    only_literals = choices(hint) if all(isinstance(value, str) for value in choices(hint)) else ()
    parse = _parser_of(hint)
    group.add_argument(
        flag(f),
        dest=f.name,
        action=action,
        default=default,
        type=parse,
        choices=only_literals if parse is str and only_literals else None,
        metavar=f.metadata["metavar"],
        help=f"{f.metadata['help']} [{shown}]",
    )


def settings_from(record: type[S], args: argparse.Namespace) -> S:
    """Return the settings that parsed options mean. Raises SettingsError that names the option."""
    try:
        return record(**{f.name: getattr(args, f.name) for f in fields(record)})
    except SettingsError as error:
        flags = {f.name: flag(f) for f in fields(record)}
        if error.setting not in flags:
            raise
        message = error.message.replace(f"{error.setting} = ", f"{flags[error.setting]} ", 1)
        raise SettingsError(message, fix=error.fix, setting=error.setting) from None


def add_ray_options(groups: Groups) -> None:
    """Add --ray and what belongs to it."""
    group = groups["hardware"]
    group.add_argument("--ray", metavar="ADDRESS|local", help="do the work on a Ray cluster (extra: ray)")
    group.add_argument("--ray-actors", type=int, metavar="N", help="workers there [one for each GPU, or each node]")
    group.add_argument("--ray-gpus", type=float, metavar="G", help="of each worker, may be a fraction [1, or 0]")


def check_ray_options(args: argparse.Namespace) -> None:
    """Refuse --ray beside what is for this machine. Raises SettingsError."""
    if args.ray is None and (args.ray_actors is not None or args.ray_gpus is not None):
        raise SettingsError("--ray-actors and --ray-gpus go with --ray", fix="name the cluster with --ray")
    if args.ray_actors is not None and args.ray_actors < 1:
        raise SettingsError(f"--ray-actors {args.ray_actors}: must be at least 1")
    if args.ray_gpus is not None and not 0 <= args.ray_gpus <= 64:
        raise SettingsError(f"--ray-gpus {args.ray_gpus:g}: must be from 0 to 64")
    if args.ray is not None and ("," in args.device or args.device == ALL_DEVICES):
        raise SettingsError("--ray: each worker has one device", fix="leave out --device, and set --ray-actors")


def devices_from(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the devices that --device names, and leave the first as the one of the runtime settings."""
    if "," not in args.device and args.device != ALL_DEVICES:
        return (args.device,)
    devices = device_names(args.device)
    args.device = "cuda" if devices == (ALL_DEVICES,) else devices[0]
    return devices


def _parser_of(hint: Any) -> Callable[[str], Any]:
    """Return what turns an option's text into a value of a field's type; ranges are the settings' to check."""
    kinds = [one for one in alternatives(hint) if not choices(one)]
    kind = kinds[0] if kinds else str
    if get_origin(kind) is tuple:
        return _interval
    if kind is int and choices(hint):
        return _number_or(choices(hint))
    return kind if kind in (int, float) else str


def _number_or(literals: tuple[str, ...]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text in literals:
            return text
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither {', '.join(literals)} nor a whole number") from None

    return parse


def _interval(text: str) -> tuple[float, float]:
    try:
        begin, end = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers from 0 to 1, such as 0,0.5") from None
    return begin, end
