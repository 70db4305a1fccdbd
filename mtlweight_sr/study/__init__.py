"""Comparing strategies on super-resolution: settings, runs, tables, plots and a report."""

from __future__ import annotations

from mtlweight_sr.study.ablation import run_ablation
from mtlweight_sr.study.config import AblationConfig, Arm
from mtlweight_sr.study.presets import PRESETS

__all__ = ["PRESETS", "AblationConfig", "Arm", "run_ablation"]
