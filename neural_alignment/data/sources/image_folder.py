"""Folders of image files, one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from neural_alignment.data.damage import DamageList
from neural_alignment.data.image_files import (
    ImageFiles,
    LabelledFiles,
    check_same_classes,
    check_several_classes,
    labelled_files,
)
from neural_alignment.data.imagenet import PREPROCESSING, Preparation
from neural_alignment.data.pipeline import Batching, Dataset, Facts
from neural_alignment.data.sources.base import (
    SOURCES,
    VALIDATION_FRACTION,
    Augmentation,
    ImageSize,
    PreprocessingName,
    SourceOptions,
    TolerateCorrupt,
    ValidationFraction,
    check_augmentation,
    mixed_order,
    split_by_class,
)
from neural_alignment.data.streamed import Streamed
from neural_alignment.errors import ArgumentError
from neural_alignment.options import PathText


@SOURCES.register
class ImageFolderData(SourceOptions):
    """JPEG, PNG or WebP files in one folder per class, such as ILSVRC2012 unpacked. The classes are sorted by name."""

    free_keys: ClassVar[frozenset[str]] = SourceOptions.free_keys | {"train_folder", "validation_folder"}

    source: Literal["image_folder"]
    train_folder: PathText
    """Folder with one folder per class."""
    validation_folder: PathText | None = None
    """Folder with the same class folders. Default: part of the training images is held out."""
    validation_fraction: ValidationFraction | None = None
    """Fraction of each class that is held out for validation without `validation_folder`; the split does not depend on
    the seed. Default: 0.2."""
    preprocessing: PreprocessingName = "resnet"
    """`resnet` or `inception`: crops, flips and scaling as in the published training of ResNet v1 or v2 on ImageNet.
    `resize`: the whole image is resized to a square and scaled to [-1, 1]."""
    image_size: ImageSize | None = None
    """Height and width of the images. Default: 224 for resnet, 299 for inception. Required for `resize`."""
    augment: Augmentation | None = None
    """Random crop after padding by 4 pixels, with or without a flip; only for `resize`."""
    tolerate_corrupt: TolerateCorrupt = 0

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> ImageFolderData:
        if self.preprocessing != "resize":
            check_augmentation(self)
        elif self.image_size is None:
            raise ArgumentError("image_size", "must be a number of pixels with preprocessing resize", None)
        if self.validation_folder is not None and self.validation_fraction is not None:
            raise ArgumentError("validation_fraction", "must be null with validation_folder", self.validation_fraction)
        return self

    @property
    def _preparation(self) -> Preparation:
        return PREPROCESSING[self.preprocessing].at(self.image_size)

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that affect the result. See `SourceOptions.decisive`.

        Whether there is a `validation_folder` is one of them: without it, training images are held out.
        """
        given = {} if options.get("validation_folder") is None else {"validation_folder": "given"}
        return super().decisive(options) | given

    def load(self, batching: Batching) -> Dataset:
        """Returns the images, read from their files during training. See `SourceOptions.load`."""
        damage = DamageList(self.tolerate_corrupt)
        train, validation = self._splits()
        key = "train_folder" if self.validation_folder is None else "validation_folder"
        return Streamed(
            batching,
            ImageFiles("data.train_folder", train, damage),
            ImageFiles(f"data.{key}", validation, damage),
            self._preparation,
            class_names=train.classes,
            augment=self.augment,
            validation_order=mixed_order(len(validation.paths)),
        )

    def facts(self, batching: Batching) -> Facts:
        """Returns shapes and counts from the lists of files; no image is read."""
        train, validation = self._splits()
        return Facts(
            batching,
            input_shape=self._preparation.input_shape,
            classes=len(train.classes),
            train_examples=len(train.paths),
            validation_examples=len(validation.paths),
        )

    def _splits(self) -> tuple[LabelledFiles, LabelledFiles]:
        """Returns the training and the validation files."""
        files = labelled_files("data.train_folder", self.train_folder)
        check_several_classes("data.train_folder", files)
        if self.validation_folder is None:
            train, validation = split_by_class(files.labels, self.validation_fraction or VALIDATION_FRACTION)
            return files.part(train), files.part(validation)
        validation = labelled_files("data.validation_folder", self.validation_folder)
        check_same_classes("data.validation_folder", validation, files)
        return files, validation
