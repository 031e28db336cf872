"""Typed decoding: JSON values into frozen dataclasses after their annotations, naming the place of a mistake.

A decoder is a function from a JSON value to a typed one. Decoders for a class are built once, from its
annotations, so that reading a large report costs one call a value.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Decoder = Callable[[Any], Any]

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
MAX_DEPTH = 64
COMMENTS = ("$", "_")
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number"}


class Mismatch(Exception):
    """A value of the wrong kind; `where` grows from the leaf outwards while the stack unwinds."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = ""

    def inside(self, step: str) -> Mismatch:
        self.where = step + self.where
        return self


def kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), "a number")


def expect(expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise Mismatch(f"expected {_KINDS[expected]}, found {kind(value)}")
    return value


def number(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    if type(value) is str and value in NONFINITE:
        return NONFINITE[value]
    raise Mismatch(f'expected a number, or "nan", "inf" or "-inf", found {kind(value)}')


def json_value(value: Any, depth: int = 0) -> Any:
    """Free JSON, as it is, unless it is nested deeper than anything precaudit writes."""
    if depth > MAX_DEPTH:
        raise Mismatch(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            json_value(inner, depth + 1)
    return value


class Decoders:
    """Builds decoders from annotations.

    `keys` renames fields, a class at a time; a field whose key is "" is read from the object that holds it. `special`
    checks what annotations don't describe: it gets the class's decoder and the value. `strict` refuses keys of no
    field, but for comments (`$schema`, `_why`).
    """

    def __init__(
        self,
        keys: Mapping[type, Mapping[str, str]],
        special: Mapping[Any, Callable[[Decoder, Any], Any]],
        strict: bool = False,
    ) -> None:
        self.keys = keys
        self.special = special
        self.strict = strict

    def decoder(self, hint: Any) -> Decoder:
        origin, arguments = get_origin(hint), get_args(hint)
        if hint is Any:
            return json_value
        if hint is float:
            return number
        if hint in (int, str, bool):
            return lambda value: expect(hint, value)
        if origin is Literal:
            return _choice(arguments)
        if origin in (Union, types.UnionType):
            inner = self.decoder(next(a for a in arguments if a is not type(None)))
            return lambda value: None if value is None else inner(value)
        if origin is tuple:
            return self._tuple(arguments)
        if origin is Mapping:
            return _mapping(self.decoder(arguments[1]))
        if hint is Mapping:
            return _mapping(json_value)
        if is_dataclass(hint):
            decode = self._dataclass(hint)
            return partial(self.special[hint], decode) if hint in self.special else decode
        raise TypeError(f"no decoder for {hint!r}")

    def _tuple(self, arguments: tuple[Any, ...]) -> Decoder:
        if arguments[-1] is Ellipsis:
            return _list(self.decoder(arguments[0]))
        parts = [self.decoder(argument) for argument in arguments]

        def decode(value: Any) -> tuple[Any, ...]:
            if len(expect(list, value)) != len(parts):
                raise Mismatch(f"expected {len(parts)} values, found {len(value)}")
            return tuple(part(inner) for part, inner in zip(parts, value, strict=True))

        return decode

    def _dataclass(self, cls: Any) -> Decoder:
        hints = get_type_hints(cls)
        renamed = self.keys.get(cls, {})
        members = [
            (f.name, renamed.get(f.name, f.name), self.decoder(hints[f.name]), _required(f)) for f in fields(cls)
        ]
        known = [key for _, key, *_ in members]

        def decode(value: Any) -> Any:
            expect(dict, value)
            strange = (key for key in value if key not in known and not key.startswith(COMMENTS))
            if self.strict and (key := next(strange, None)) is not None:
                raise Mismatch(f"the key {key[:40]!r} is none of {', '.join(known)}")
            found = {}
            for name, key, read, required in members:
                if key and value.get(key) is None and not required:
                    continue
                if key and key not in value:
                    raise Mismatch(f"the key {key!r} is missing")
                found[name] = _inside(read, value[key] if key else value, ".{}" if key else "", key)
            return cls(**found)

        return decode


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _choice(choices: tuple[str, ...]) -> Decoder:
    def decode(value: Any) -> str:
        if type(value) is not str or value not in choices:
            raise Mismatch(f"expected one of {', '.join(choices)}, found {str(value)[:40]!r}")
        return value

    return decode


def _list(inner: Decoder) -> Decoder:
    return lambda value: tuple(_inside(inner, item, "[{}]", i) for i, item in enumerate(expect(list, value)))


def _mapping(inner: Decoder) -> Decoder:
    return lambda value: {key: _inside(inner, item, ".{:.80}", key) for key, item in expect(dict, value).items()}


def _inside(inner: Decoder, item: Any, step: str, key: object) -> Any:
    try:
        return inner(item)
    except Mismatch as mismatch:
        raise mismatch.inside(step.format(key)) from None
