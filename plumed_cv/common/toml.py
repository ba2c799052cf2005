"""Writing TOML: Python's standard library only reads it."""

import json
from typing import Any


def as_toml(sections: dict[str, dict[str, Any]]) -> str:
    """Return sections of keys and values as the text of a TOML file.

    Parameters
    ----------
    sections
        Values are strings, numbers, booleans, lists of them, or dictionaries of them.
    """
    parts = []
    for name, keys in sections.items():
        lines = [f"{key} = {value_in_toml(value)}" for key, value in keys.items()]
        parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(parts)


def value_in_toml(value: Any) -> str:
    """Return a value in TOML. Its strings, numbers and booleans are those of JSON."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {value_in_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_in_toml, value))}]"
    if isinstance(value, str):
        # JSON may leave this character as it is, TOML must not.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, allow_nan=False)
