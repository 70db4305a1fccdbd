"""Photographs, the crops of them that training is fed with, and what brings them to the device."""

from mtlweight_sr.data.loader import CropBatch, CropLoader, PixelCache
from mtlweight_sr.data.photographs import (
    BundledPhotographs,
    Crop,
    CropDataset,
    PhotographFolder,
    Photographs,
)

__all__ = [
    "BundledPhotographs",
    "Crop",
    "CropBatch",
    "CropDataset",
    "CropLoader",
    "PhotographFolder",
    "Photographs",
    "PixelCache",
]
