"""`python -m mtlweight_sr.validation`."""

from mtlweight_sr.validation.commands import app

app()
