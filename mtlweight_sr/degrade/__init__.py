"""Degrading image files: `python -m mtlweight_sr.degrade`."""
