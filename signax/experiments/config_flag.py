"""`--config=FILE.py[:RUN]` and `--config.FIELD=VALUE`, for every command that runs an experiment.

A config file has `get_config()`; one that is a page of several runs has `get_config(run="...")` and
a dictionary `RUNS` of their names.
"""

import difflib
import re
import runpy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from signax.experiments import default_config
from signax.experiments.default_config import Config
from signax.experiments.errors import UsageError, unknown_name

_PAGE = "signax/experiments/default_config.py"


class ChosenConfig(NamedTuple):
    """A config and the name under which its run is kept."""

    config: Config
    name: str  # the file's name and what the command line changed: "digits_ssdm,batch_size=128"


def parse_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> ChosenConfig:
    """Adds `--config` to a command's own flags, parses `argv` into them, and returns the config.

    Raises:
      UsageError: a flag or a field that does not exist (with the near miss), a value of the wrong
        type, a config file that cannot be read.
    """
    chosen, argv = _take_config(argv)
    path, _, run = chosen.partition(":")
    config = _load(Path(path), run) if path else default_config.get_config()
    _check_overrides(argv, field_names(config))
    try:
        # Not DEFINE_config_file: it loads the file by `load_module`, which Python is about to drop.
        config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
        _, *rest = flag_values(["signax", *argv])
    except (flags.Error, TypeError, ValueError) as error:
        raise UsageError(_in_plain_words(str(error))) from error
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: flags are written --name=value.")
    overrides = config_flags.get_override_values(flag_values["config"])
    return ChosenConfig(config, _run_name(path, run, overrides))


def field_names(config: Config, prefix: str = "") -> Iterator[str]:
    """Yields every field of a config, groups written with dots."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _take_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Splits `--config=FILE` (or `--config FILE`) off; "" where there is none."""
    chosen, rest = "", []
    arguments = iter(argv)
    for argument in arguments:
        if re.fullmatch("--?config(=.*)?", argument):
            _, equals, value = argument.partition("=")
            chosen = value if equals else next(arguments, "")
            if not chosen:
                raise UsageError("--config needs a file: --config=FILE.py.")
        else:
            rest.append(argument)
    return chosen, rest


def _load(path: Path, run: str) -> Config:
    if not path.is_file():
        siblings = [sibling.name for sibling in path.parent.glob("*.py")]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UsageError(f"there is no config file {path}.{hint}")
    try:
        page = runpy.run_path(str(path))
        if "get_config" not in page:
            raise UsageError(f"config file {path} defines no get_config(): see {_PAGE}.")
        if run and "RUNS" in page and run not in page["RUNS"]:
            raise unknown_name(f"run of {path}", run, page["RUNS"])
        config = page["get_config"](*filter(None, [run]))
    except UsageError:
        raise
    except Exception as error:  # anything may go wrong in a file that somebody is writing
        message = error.args[0] if error.args else ""
        if isinstance(error, SyntaxError):
            message = error  # with its line
        raise UsageError(f"config file {path}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(
            f"config file {path}: get_config() must return an ml_collections.ConfigDict."
        )
    return config.lock()


def _in_plain_words(message: str) -> str:
    """An error of absl's flags in the words of a command line, not of Python."""
    for pattern, words in _PLAIN.items():
        message = re.sub(pattern, words, message)
    return message


_PLAIN = {
    r" \?": "?",
    r"invalid literal for int\(\).*": "write a whole number, or leave it out for the default.",
    r"could not convert string to float.*": "write a number, or leave it out for the default.",
    r"\('Non-boolean argument to boolean flag', .*\)": "write true or false.",
}


def _check_overrides(argv: Sequence[str], fields: Iterable[str]) -> None:
    known = {f"config.{field}" for field in fields}
    for argument in argv:
        override = re.match(r"--?(no)?(config\.[^=]*)", argument)
        if override and override[2] not in known:
            inside = sorted(field for field in known if field.startswith(f"{override[2]}."))
            if inside:
                raise UsageError(
                    f"{override[2]} is a group of fields: set one of them, such as {inside[0]}."
                )
            leaf = override[2].rpartition(".")[-1]
            in_other_group = [field for field in known if field.rpartition(".")[-1] == leaf]
            raise unknown_name("field", override[2], in_other_group or known)


def _run_name(path: str, run: str, overrides: dict[str, Any]) -> str:
    file = Path(path).stem if path else "default"
    changed = [
        f"{name}={value}" for name, value in sorted(overrides.items()) if name != "mnist_dir"
    ]
    name = ",".join(["_".join(filter(None, [file, run])), *changed])
    return re.sub(r"[^\w.,=+-]+", "_", name)
