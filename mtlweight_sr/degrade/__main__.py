"""`python -m mtlweight_sr.degrade`."""

import typer

from mtlweight_sr.degrade.command import main

typer.run(main)
