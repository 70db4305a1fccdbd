from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """Crops of the photographs that come with scikit-image, `[4, 3, 256, 256]`, 8-bit levels."""
    corners = {
        "astronaut": (0, 100),
        "coffee": (100, 150),
        "chelsea": (20, 100),
        "rocket": (60, 200),
    }
    crops = [
        np.ascontiguousarray(getattr(data, name)()[top : top + 256, left : left + 256])
        for name, (top, left) in corners.items()
    ]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
