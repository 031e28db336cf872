"""JSON as bytes: by orjson, or by Python's own module, some ten times slower, where a machine's packages are fixed."""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson
except ModuleNotFoundError:

    def loads(text: bytes) -> Any:
        """ValueError for anything that is no JSON; nan and infinity are none."""
        return json.loads(text, parse_constant=_refused)

    def dumps(value: Any, indented: bool = False) -> bytes:
        """UTF-8 of a value that `to_json` made."""
        layout: dict[str, Any] = {"indent": 2} if indented else {"separators": (",", ":")}
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout).encode()

    def _refused(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

else:

    def loads(text: bytes) -> Any:
        """ValueError for anything that is no JSON; nan and infinity are none."""
        return orjson.loads(text)

    def dumps(value: Any, indented: bool = False) -> bytes:
        """UTF-8 of a value that `to_json` made."""
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else 0)
