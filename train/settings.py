"""The settings of a config: their help and choices for the command line, and the check of their ranges.

The configs of fitting, harvesting and evaluating are dataclasses whose fields `option` makes. Nothing here imports
torch, so the command line can show its help without it.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any

# JSON has no place for numpy's numbers, so a config holds Python's.
_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: operator.index,
    int | None: operator.index,
    float: float,
    float | None: float,
}


def option(
    default: Any, help: str, *, choices: Sequence[str] = (), least: int | None = None, or_none: bool = False
) -> Any:
    """A field of a config, which becomes an option of the command line.

    Args:
        default: the default value, or MISSING for a required option.
        help: the text that --help shows.
        choices: the values allowed; empty for all.
        least: the smallest number allowed; None for no limit.
        or_none: whether the command line takes the word none for infinity.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "or_none": or_none})


def check_settings(config: Any) -> None:
    """Make every number of a config a plain Python number, and check it against its field's choices and limit.

    Args:
        config: a dataclass whose fields `option` made; it is changed in place, frozen or not.

    Raises:
        ValueError: a value is out of its range; the message names the setting.
        TypeError: a setting is not a whole number and must be one.
    """
    for setting in fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if value is None:
            continue
        if setting.type in _PLAIN:
            value = _PLAIN[setting.type](value)
            object.__setattr__(config, name, value)
        choices, least = setting.metadata["choices"], setting.metadata["least"]
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if least is not None and not value >= least:  # NaN too
            raise ValueError(f"{name} must be at least {least}, got {value}")
