"""Validation sets of degraded photographs, one for each task; `python -m` makes them."""

from mtlweight_sr.validation.sets import ValidationSet

__all__ = ["ValidationSet"]
