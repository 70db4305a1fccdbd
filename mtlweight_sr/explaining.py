"""Errors as a person at a command line reads them."""

from __future__ import annotations

from pydantic import ValidationError

__all__ = ["explain"]


def explain(error: BaseException) -> str:
    """An error in one sentence: which setting was refused, its value, and what is allowed."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    return f"`{name}` = {first['input']!r} is refused: {message}."
