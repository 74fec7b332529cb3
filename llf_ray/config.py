"""Override, check, flatten, store and name any tree of frozen dataclasses.

Settings are values: a job builds them in Python, the command line overrides leaves by dotted keys, MLflow and Tune see
the same keys. Everything here works on plain dataclasses and needs nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import math
import numbers
import operator
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

__all__ = [
    "SettingError",
    "accepted",
    "check",
    "check_number",
    "fingerprint",
    "flatten",
    "from_plain",
    "nearest",
    "override",
    "parse_assignments",
    "shortened",
    "to_plain",
]

T = TypeVar("T")


class SettingError(ValueError):
    """A user's setting is wrong; the message is one line that says which, what was found and what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``name``, or None where nothing is alike."""
    names = list(allowed)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return found[0]
    inside = [other for other in names if name.lower() in other.lower() or other.lower() in name.lower()]
    return min(inside, key=len) if inside and name else None


def shortened(text: str, width: int) -> str:
    """A long name without its middle: what tells runs apart stands at both ends."""
    if len(text) <= width:
        return text
    kept = max(0, width - 2)
    return text[: kept - kept // 2] + ".." + text[len(text) - kept // 2 :]


def unknown(what: str, name: str, allowed: Iterable[str]) -> SettingError:
    """The error for a name that does not exist: what, found, nearest, allowed (shortened)."""
    names = list(allowed)
    hint = nearest(name, names)
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return SettingError(
        f"{what} {name!r} does not exist" + (f"; did you mean {hint!r}?" if hint else "") + f" (there are: {shown})"
    )


def accepted(error: BaseException) -> str:
    """What may stand in place of a keyword that a class does not take, to be put behind the message of a TypeError:
    ``; did you mean 'store'? (KeepMask takes: store, source, select)``. Empty for every other error.
    """
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or found is None:
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    held = [names for frame in frames for names in (frame.f_globals, frame.f_locals)]
    inside = [vars(value) for names in held for value in names.values() if isinstance(value, types.ModuleType)]
    kind = next((names[found[1]] for names in (*held[::-1], *inside) if found[1] in names), None)
    if not dataclasses.is_dataclass(kind):
        return ""
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    hint = nearest(found[2], names)
    return (f"; did you mean {hint!r}?" if hint else "") + f" ({found[1]} takes: {', '.join(names) or 'nothing'})"


def check_number(
    key: str,
    value: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise unless a finite ``low <= value <= high`` and ``above < value < below``; None (absent) passes."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # a job file was not read by `override`
        raise SettingError(f"{key} = {value!r}: must be a number")
    if not math.isfinite(value):
        raise SettingError(f"{key} = {value!r}: a finite number is needed")
    limits = [
        (">=", low, operator.ge),
        (">", above, operator.gt),
        ("<=", high, operator.le),
        ("<", below, operator.lt),
    ]
    given = [(sign, limit, holds) for sign, limit, holds in limits if limit is not None]
    if not all(holds(value, limit) for _, limit, holds in given):
        raise SettingError(f"{key} = {value!r}: must be {' and '.join(f'{sign} {limit}' for sign, limit, _ in given)}")


# --------------------------------------------------------------------------------------------------------------- types


def hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of the fields of a dataclass."""
    return {
        name: hint
        for name, hint in typing.get_type_hints(cls).items()
        if name in {f.name for f in dataclasses.fields(cls)}
    }


def describe(hint: Any) -> str:
    """A type as a user would say it: 'a whole number', 'one of fp32, bf16'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN_NAMES:
        return _PLAIN_NAMES[hint]
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        if not args:
            return "a tuple"
        each, many = describe(args[0]), args[-1] is Ellipsis
        plural = each.removeprefix("a ") + "s" if each.startswith("a ") else f"items, each {each}"
        return f"a tuple of {plural}" if many else f"a tuple of {len(args)} {plural}"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    return getattr(hint, "__name__", str(hint))


_PLAIN_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"
}  # fmt: skip


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` may stand in a field annotated with ``hint``; `check` looks into dataclasses."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return len(inner) == len(value) and all(fits(v, a) for v, a in zip(value, inner, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(v, args[1]) for v in value.values())
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is not None or not isinstance(hint, type):
        return True  # a callable, a type variable: nothing a job file can get wrong by a key
    if getattr(hint, "_is_protocol", False):
        return value is not None and not isinstance(value, str | int | float)
    return isinstance(value, hint)


def check(config: Any, prefix: str = "") -> None:
    """Check every field of a settings tree against its annotation.

    Raise `SettingError` for the first that does not fit.
    """
    types_of = hints(type(config))
    for field in dataclasses.fields(config):
        value, hint, key = getattr(config, field.name), types_of[field.name], f"{prefix}{field.name}"
        if not fits(value, hint):
            raise SettingError(f"{key} = {value!r}: must be {describe(hint)}")
        for inner_key, inner in _children(value, key):
            check(inner, f"{inner_key}.")


def _children(value: Any, key: str) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(key, value)]
    if isinstance(value, Mapping):
        return [pair for name, item in value.items() for pair in _children(item, f"{key}.{name}")]
    if isinstance(value, tuple):
        return [pair for number, item in enumerate(value) for pair in _children(item, f"{key}.{number}")]
    return []


# ------------------------------------------------------------------------------------------------------------ override


def parse_assignments(words: Iterable[str]) -> dict[str, str]:
    """``["optim.lr=0.05"]`` -> ``{"optim.lr": "0.05"}``."""
    assignments: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"{word!r}: a setting is written key=value, for example optim.lr=0.05")
        if key.strip() in assignments:
            raise SettingError(f"{key.strip()} is set twice: {assignments[key.strip()]!r} and {text!r}")
        assignments[key.strip()] = text
    return assignments


def override(config: T, assignments: Mapping[str, Any], prefix: str = "") -> T:
    """A copy of a settings tree with leaves replaced by dotted keys; texts are read by the field's type.

    All keys of one dataclass are set at once, so that its own checks see the whole new value.

    Raises:
        SettingError: unknown key (with the nearest), wrong type, impossible value.
    """
    types_of = hints(type(config))
    changes: dict[str, Any] = {}
    for head, below in _by_head(assignments).items():
        if head not in types_of:
            raise _unknown_key(config, prefix, head, below)
        changes[head] = _replaced(getattr(config, head), types_of[head], below, f"{prefix}{head}")
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except SettingError as error:
        raise SettingError(_with_prefix(str(error), prefix)) from None


def _with_prefix(message: str, prefix: str) -> str:
    """A dataclass's own check knows its field's name only: put the path in front where the message starts with a
    field.
    """
    return (
        message
        if not prefix or message.startswith(prefix) or " " in message.split("=")[0].strip()
        else prefix + message
    )


def _unknown_key(config: Any, prefix: str, head: str, below: Mapping[str, Any]) -> SettingError:
    rest = next(iter(below))
    key = f"{prefix}{head}" + (f".{rest}" if rest else "")
    here = [f"{prefix}{name}" for name in hints(type(config))]
    everywhere = [f"{prefix}{name}" for name in flatten(config)] + here
    same = [name for name in everywhere if name.endswith(f".{key}")]  # only the path in front is missing
    hint = min(same, key=len, default=None) or nearest(key, everywhere) or nearest(f"{prefix}{head}", here)
    return SettingError(
        f"unknown setting {key!r}" + (f"; did you mean {hint!r}?" if hint else "") + f" (here: {', '.join(here)})"
    )


def _replaced(value: Any, hint: Any, below: Mapping[str, Any], key: str) -> Any:
    if "" in below:
        if len(below) > 1:
            raise SettingError(f"{key} is set both whole and in part")
        if dataclasses.is_dataclass(value) and isinstance(below[""], str) and below[""].lower() != "none":
            inside = ", ".join(f"{key}.{name}" for name in hints(type(value)))
            raise SettingError(f"{key} is a group of settings ({type(value).__name__}): set one of {inside}")
        return convert(below[""], hint, key)
    if isinstance(value, Mapping):
        return _override_mapping(value, hint, below, f"{key}.")
    if dataclasses.is_dataclass(value):
        return override(value, below, f"{key}.")
    if isinstance(value, tuple):
        items = list(value)
        for number, rest in _by_head(below).items():
            if not number.isdigit() or int(number) >= len(items):
                raise SettingError(f"{key}.{number}: a place from 0 to {len(items) - 1} is needed")
            inner = typing.get_args(hint)[0] if typing.get_args(hint) else Any
            items[int(number)] = _replaced(items[int(number)], inner, rest, f"{key}.{number}")
        return tuple(items)
    raise SettingError(f"{key} = {value!r} has no settings below it: {key}.{next(iter(below))} does not exist")


def _by_head(assignments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in assignments.items():
        head, _, rest = key.partition(".")
        grouped.setdefault(head, {})[rest] = value
    return grouped


def _override_mapping(value: Mapping[str, Any], hint: Any, below: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(value)
    _, inner = typing.get_args(hint) or (str, Any)
    for head, rest in _by_head(below).items():
        # a mapping of plain values is open (custom resources); one of settings (the arms of a comparison) is not
        if head not in result and inner not in _PLAIN_NAMES:
            raise unknown("setting", f"{prefix}{head}", [f"{prefix}{name}" for name in result])
        result[head] = _replaced(result.get(head), inner, rest, f"{prefix}{head}")
    return result


def convert(value: Any, hint: Any, key: str) -> Any:
    """Read a text by a field's type, or pass a value that already fits; raise `SettingError` otherwise."""
    if not isinstance(value, str):
        if fits(value, hint):
            return float(value) if hint is float else value
        raise SettingError(f"{key} = {value!r}: must be {describe(hint)}")
    for reader in _readers(hint):
        try:
            return reader(value)
        except (ValueError, KeyError):
            continue
    near = nearest(value, _choices(hint))
    raise SettingError(f"{key} = {value!r}: must be {describe(hint)}" + (f"; did you mean {near!r}?" if near else ""))


def _choices(hint: Any) -> list[str]:
    """The words of a Literal, also inside a union."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return [str(a) for a in args]
    return [word for a in args for word in _choices(a)] if origin in (typing.Union, types.UnionType) else []


def _readers(hint: Any) -> list[Callable[[str], Any]]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return [lambda text: text]
    if hint is type(None):
        return [lambda text: {"none": None, "null": None}[text.lower()]]
    if hint is bool:
        return [lambda text: {"true": True, "false": False, "yes": True, "no": False}[text.lower()]]
    if hint in (int, float, str):
        return [hint]
    if origin is Literal:
        return [{str(a): a for a in args}.__getitem__]
    if origin in (typing.Union, types.UnionType):
        # text last: otherwise "none" and numbers would be read as text
        return [r for a in sorted(args, key=lambda a: (a is str, a is not type(None))) for r in _readers(a)]
    if origin is tuple:
        return [lambda text: _read_tuple(text, args)]
    return []


def _read_tuple(text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``"0.9, 0.999"`` or ``"(0.9, 0.999)"`` by the types of a tuple's items."""
    parts = [part.strip().strip("'\"") for part in text.strip("()[] ").split(",") if part.strip()]
    inner = [args[0] if args else Any] * len(parts) if not args or args[-1] is Ellipsis else list(args)
    if len(parts) != len(inner):
        raise ValueError(f"{len(inner)} items are needed")
    return tuple(convert(part, hint, "item") for part, hint in zip(parts, inner, strict=True))


# ------------------------------------------------------------------------------------------------------- plain and back


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a settings tree under dotted keys; a nested dataclass also says its type under ``key``."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        leaves.update(_leaves(getattr(config, field.name), f"{prefix}{field.name}"))
    return leaves


def _leaves(value: Any, key: str) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: type(value).__name__, **flatten(value, f"{key}.")}
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in _leaves(item, f"{key}.{name}").items()}
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(v) for v in value):
        return {k: v for number, item in enumerate(value) for k, v in _leaves(item, f"{key}.{number}").items()}
    return {key: value}


def to_plain(value: Any) -> Any:
    """A settings tree as JSON-ready values; dataclasses carry their type as ``module:name``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if "type" in fields:
            raise SettingError(f"{type(value).__name__}: no setting may be called 'type', where its class is kept")
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {"mapping": {str(k): to_plain(v) for k, v in value.items()}}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SettingError(
        f"{value!r} ({type(value).__name__}) cannot be a setting: "
        "use numbers, texts, tuples, mappings, frozen dataclasses"
    )


def from_plain(plain: Any) -> Any:
    """The inverse of `to_plain`. Only dataclasses are built; nothing else is called.

    Raises:
        SettingError: a class that is not there any more, or has other settings now.
    """
    if isinstance(plain, list):
        return tuple(from_plain(v) for v in plain)
    if not isinstance(plain, dict):
        return plain
    if "type" not in plain:
        return {k: from_plain(v) for k, v in plain["mapping"].items()}
    module, _, name = plain["type"].partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SettingError(f"{plain['type']} cannot be found: {error}") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise SettingError(f"{plain['type']} is no settings class")
    values = {k: from_plain(v) for k, v in plain.items() if k != "type"}
    if gone := sorted(set(values) - {f.name for f in dataclasses.fields(found) if f.init}):
        raise unknown(f"setting of {name}", gone[0], [f.name for f in dataclasses.fields(found)])
    return found(**values)


def fingerprint(config: Any, *, without: Iterable[str] = ()) -> str:
    """Eight hex digits of what differs from the defaults, so that a new setting does not rename old runs.

    ``without`` names top-level fields that do not belong to a run's identity (where it runs, how it is logged).
    """
    skipped = set(without)
    fields = {name: value for name, value in _differing(config).items() if name not in skipped}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _differing(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        if isinstance(value, Mapping):
            return {str(k): _differing(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return [_differing(v) for v in value]
        # settings that are equal have one name, be a rate written 1 or 1.0
        return int(value) if isinstance(value, float) and value.is_integer() else value
    kept: dict[str, Any] = {"type": type(value).__qualname__}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if default is dataclasses.MISSING or item != default:
            kept[field.name] = _differing(item)
    return kept
