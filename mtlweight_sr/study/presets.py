"""Ready-made ablations: a few minutes on a laptop, an afternoon, and the published schedule."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["PRESETS", "Preset"]

Preset = dict[str, Any]
"""Settings by name, for the command line to start from."""

_DEMO: Preset = {
    "strategy": "equal,dwa,gls,focal_achievement:data",
    "spend": "loss",
    "gamma": 4.0,
    "seeds": 1,
    "scale": 2,
    "val_crop": 320,
    "model": {
        "srresnet": {"options": {"channels": 24, "blocks": 2, "initial_scale": 0.4}},
        "rrdbnet": {"options": {"channels": 16, "blocks": 1}},
    },
    "training": {
        "intervals": 4,
        "iterations": 50,
        "batch_size": 8,
        "crop": 64,
        "learning_rate": 2e-3,
        "average": 0.95,
    },
}

_SMALL: Preset = {
    "strategy": "equal,rlw,dwa,gls,focal_achievement",
    "spend": "loss,data",
    "gamma": 2.0,
    "seeds": 3,
    "scale": 4,
    "model": {
        "srresnet": {"options": {"channels": 48, "blocks": 8}},
        "rrdbnet": {"options": {"channels": 32, "blocks": 4}},
    },
    "training": {
        "intervals": 20,
        "iterations": 500,
        "batch_size": 16,
        "crop": 128,
        "learning_rate": 5e-4,
        "average": 0.995,
    },
}

_PAPER: Preset = {
    "strategy": "equal,rlw,dwa,gls,focal_achievement,focal_achievement:data",
    "spend": "loss",
    "gamma": 2.0,
    "seeds": 3,
    "scale": 4,
    "model": {"srresnet": {}, "rrdbnet": {}},
    "training": {
        "intervals": 80,
        "iterations": 5000,
        "batch_size": 48,
        "crop": 256,
        "learning_rate": 2e-4,
        "betas": (0.9, 0.99),
        "schedule": "multistep",
        "average": 0.999,
    },
    "needs_data": True,
}

PRESETS: Mapping[str, Preset] = MappingProxyType({"demo": _DEMO, "small": _SMALL, "paper": _PAPER})
r"""`demo`: minutes on two CPU cores, to see every part work; far too short to rank strategies.
`small`: hours on a GPU or a day on a CPU. `paper`: the published lengths and sizes, for a GPU and
data of one's own: 80 intervals of 5000 iterations, batch 48, HR crops of 256, the networks in full
size, Adam with betas (0.9, 0.99) and a constant rate of $2 \cdot 10^{-4}$ (that of Real-ESRNet,
which also trains on L1 alone), a moving average of 0.999. $\gamma$ is not in the paper: 2, or 4
where gaps are small (both ours)."""
