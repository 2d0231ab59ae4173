"""Reads JSON objects strictly: file -> values asked for by name and kind, with all problems in one error.

settings = StrictObject(load_object(path), problems := [])
width = settings.plain("hidden_size", "int")
settings.finish()                      # every key that nobody asked for is a problem
raise_collected(path, problems)
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgemma_jax.config import ConfigError

Fixed = Mapping[str, tuple[tuple[Any, ...], str]]
"""Settings with only one supported value: key -> (accepted values, why). Absent is as good as the first."""

KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "an integer"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
}


def show(value: object) -> str:
    """The value as JSON, shortened to fit an error message."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


class StrictObject:
    """One JSON object being read: problems are collected in a shared list, and every key must be asked for."""

    def __init__(self, values: Mapping[str, Any], problems: list[str], path: str = "") -> None:
        self.values, self.problems, self.path = values, problems, path
        self.asked: set[str] = set()

    def problem(self, key: str, message: str) -> None:
        """Notes what is wrong with a key."""
        self.problems.append(f"{self.path}{key}: {message}")

    def wrong(self, key: str, wanted: str, why: str = "") -> None:
        """Notes that the value at `key`, which is there, is not what was wanted."""
        self.problem(key, f"wanted {wanted}, found {show(self.values[key])}{f' ({why})' if why else ''}")

    def has(self, key: str) -> bool:
        """True when the key is there and not null."""
        self.asked.add(key)
        return self.values.get(key) is not None

    def plain(self, key: str, kind: str, default: Any = None) -> Any:
        """The integer, number or truth value at `key`; without a default the key must be there."""
        self.asked.add(key)
        python_type, wanted = KINDS[kind]
        if key not in self.values:
            if default is None:
                self.problem(key, f"missing, wanted {wanted}")
            return python_type() if default is None else default
        value = self.values[key]
        if type(value) is python_type and (kind != "float" or math.isfinite(value)):
            return value
        if kind == "float" and type(value) is int and abs(value) < 2**53:
            return float(value)
        self.wrong(key, wanted)
        return python_type()

    def plain_fields(self, config_class: type, *read_elsewhere: str) -> dict[str, Any]:
        """Every integer, number and truth value of a config class that the file holds under the field's own name."""
        fields = [f for f in dataclasses.fields(config_class) if f.type in KINDS and f.name not in read_elsewhere]
        defaults = {f.name: None if f.default is dataclasses.MISSING else f.default for f in fields}
        return {f.name: self.plain(f.name, str(f.type), defaults[f.name]) for f in fields}

    def child(self, key: str) -> StrictObject:
        """The object at `key`; when it is missing or something else, that is one problem, not one for each key."""
        self.asked.add(key)
        value = self.values.get(key)
        if isinstance(value, dict):
            return StrictObject(value, self.problems, f"{self.path}{key}.")
        if key in self.values:
            self.wrong(key, "an object")
        else:
            self.problem(key, "missing, wanted an object")
        return StrictObject({}, [])

    def fixed(self, settings: Fixed) -> None:
        """Checks the settings that have only one supported value."""
        self.asked |= set(settings)
        for key, (accepted, why) in settings.items():
            value = self.values.get(key, accepted[0])
            # 1 == True in Python, but not in JSON.
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
                self.wrong(key, " or ".join(map(show, accepted)), why)

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Reports the keys that nobody asked for."""
        for key in sorted(set(self.values) - self.asked - harmless):
            close = difflib.get_close_matches(key, sorted(self.asked - set(self.values)), n=1)
            self.problem(key, f"unknown key{f', did you mean {close[0]}?' if close else ''}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"the same object has {', '.join(twice)} twice")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def load_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises ConfigError, naming file and line, for a file that cannot be read, is not JSON, has a key twice, holds NaN
    or Infinity, or holds something else than an object.
    """
    try:
        value = json.loads(
            path.read_bytes().decode("utf-8-sig"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: wanted an object, found {show(value)}")
    return value


def load_optional(path: Path) -> dict[str, Any]:
    """The settings of a file that may be absent. Null means "not set" in these files, so nulls are left out."""
    return {key: value for key, value in load_object(path).items() if value is not None} if path.exists() else {}


def raise_collected(path: Path, problems: list[str]) -> None:
    """Raises one ConfigError with all problems, if there are any."""
    if problems:
        raise ConfigError(f"{path} cannot be used:" + "".join(f"\n- {problem}" for problem in problems))
