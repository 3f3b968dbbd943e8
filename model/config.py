"""A flat frozen dataclass <-> `--key value` <-> JSON: the whole configuration system.

    @dataclass(frozen=True)
    class TrainConfig:
        beta: float = 0.1  # weight of the reference term in the margin

    config = parse_config(TrainConfig)   # defaults < --config run/config.json < --beta 0.2

A field is `int`, `float`, `str`, `bool` or `tuple[str, ...]` (several values after one flag), or
one of these `| None`. The comment that ends a field's line is its `--help`.
"""

import dataclasses
import inspect
import json
import math
import re
import sys
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
DASHES = "one that begins with -- is written --flag=VALUE"


def parse_config(config_class: type[Config], argv: list[str] | None = None) -> Config:
    """Build the configuration of a script from its command line.

    argv: arguments without the program's name; None takes the process's own.
    Raises ValueError for an unknown flag, a missing or a wrong value. `--help` prints and exits.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(help_text(config_class))
        raise SystemExit(0)
    words = group_flags(argv)
    values: dict[str, Any] = {}
    if "config" in words:
        values.update(read_json_fields(config_class, one_value("config", words.pop("config"))))
    kinds = field_types(config_class)
    for name, given in words.items():
        if name not in kinds:
            raise ValueError(f"unknown flag --{name}{suggest(name, list(kinds))}; see --help")
        values[name] = parse_value(name, given, kinds[name])
    return config_class(**values)


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a configuration as JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


# ------------------------------------------------------------------------------------------------
# from words to values


def group_flags(argv: list[str]) -> dict[str, list[str]]:
    """["--a", "1", "--b=2"] -> {"a": ["1"], "b": ["2"]}; dashes in a name count as underscores."""
    words: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in words:
                raise ValueError(f"--{name} is given twice; pass it once")
            words[name] = [value] if equals else []
        elif name is None:
            raise ValueError(f"expected a --flag, got {word!r}; write --key value")
        else:
            words[name].append(word)
    return words


def parse_value(name: str, given: list[str], kind: Any) -> Any:
    """The words after --name as a value of the field's type; ValueError if they are not one."""
    kind, optional = unwrap_optional(kind)
    if optional and given == ["none"]:
        return None
    if typing.get_origin(kind) is tuple:
        if not given:
            raise ValueError(f"--{name} expects one or more values, got none; {DASHES}")
        return tuple(given)
    if kind is bool and not given:
        return True
    word = one_value(name, given)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[word.lower()]
        value = kind(word)
    except (KeyError, ValueError):
        raise ValueError(f"--{name} expects {describe(kind)}, got {word!r}") from None
    if kind is float and not math.isfinite(value):
        raise ValueError(f"--{name} expects a finite number, got {word!r}")
    return value


def read_json_fields(config_class: type, path: str) -> dict[str, Any]:
    """The fields that a config.json holds; what a run adds about itself (`_argv`, ...) is left out.

    Raises FileNotFoundError, or ValueError for broken JSON, unknown fields and wrong types.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config expects a JSON file, got {path!r}: no such file")
    try:
        fields = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    fields = {name: value for name, value in fields.items() if not name.startswith("_")}
    kinds = field_types(config_class)
    for name, value in fields.items():
        if name not in kinds:
            raise ValueError(f"{path}: unknown field {name!r}{suggest(name, list(kinds))}")
        fields[name] = check_json_value(path, name, value, kinds[name])
    return fields


def check_json_value(path: str, name: str, value: Any, kind: Any) -> Any:
    kind, optional = unwrap_optional(kind)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{path}: {name} expects {describe(kind)}, got {value!r}")


# ------------------------------------------------------------------------------------------------
# what a dataclass says about itself


def field_types(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def unwrap_optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); X -> (X, False)."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [item for item in typing.get_args(kind) if item is not type(None)]
        assert len(inner) == 1, f"a field is X or X | None, got {kind}"
        return inner[0], True
    return kind, False


def describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, "a list of texts")


def one_value(name: str, given: list[str]) -> str:
    if not given:
        raise ValueError(f"--{name} expects one value, got none; {DASHES}")
    if len(given) > 1:
        raise ValueError(f"--{name} expects one value, got {len(given)}: {' '.join(given)!r}")
    return given[0]


def suggest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean --{close[0]}?)" if close else ""


def field_comments(config_class: type) -> dict[str, str]:
    """The comment that ends each field's line in the source, inherited fields included."""
    pattern = re.compile(r"^    (\w+):[^#\n]*#\s*(.*)$", re.MULTILINE)
    classes = [c for c in reversed(config_class.__mro__) if dataclasses.is_dataclass(c)]
    return {name: text for c in classes for name, text in pattern.findall(inspect.getsource(c))}


def help_text(config_class: type) -> str:
    """The script's docstring and one line for each field: name, default, meaning."""
    script = (sys.modules[config_class.__module__].__doc__ or "").strip()
    comments = field_comments(config_class)
    lines = [script, "", "  --config FILE.json    take fields from a run's config.json first"]
    for field in dataclasses.fields(config_class):
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        lines.append(f"  --{field.name} [{default}]    {comments.get(field.name, '')}")
    return "\n".join(lines)
