"""The data sources: one module for each source, with its options."""

from neural_alignment.data.sources.add_task import AddTaskData
from neural_alignment.data.sources.base import SOURCES, InMemoryOptions, SourceOptions
from neural_alignment.data.sources.digits import DigitsData
from neural_alignment.data.sources.image_folder import ImageFolderData
from neural_alignment.data.sources.imagenet import ImageNetData
from neural_alignment.data.sources.npz import NPZData
from neural_alignment.data.sources.tfds import TFDSData

__all__ = [
    "SOURCES",
    "AddTaskData",
    "DigitsData",
    "ImageFolderData",
    "ImageNetData",
    "InMemoryOptions",
    "NPZData",
    "SourceOptions",
    "TFDSData",
]
