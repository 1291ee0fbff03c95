"""Preprocessing of encoded photographs: that of ImageNet for ResNet v1 ("resnet") and ResNet v2 ("inception"), and
"resize", which resizes the whole image.

Training uses a random crop (8 % to 100 % of the area, aspect ratio 3/4 to 4/3), evaluation a central crop. Both are
resized bilinearly, without antialiasing, as in the TensorFlow ResNet on which the paper builds. The JPEG decoder crops,
so pixels outside of the crop are never computed. Other formats (ImageNet has one PNG, named .JPEG) are decoded whole
and then cropped. Grey and CMYK images are converted to RGB; transparency is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

MEAN = (0.485, 0.456, 0.406)  # per channel, of images in [0, 1]
STDDEV = (0.229, 0.224, 0.225)
AREA_RANGE = (0.08, 1.0)
ASPECT_RATIO_RANGE = (3 / 4, 4 / 3)
CROP_FRACTION = 0.875  # 224 / 256 of the shorter side (ResNet), 87.5 % of either side (Inception)

Window = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]
"""`(top, left, height, width)` of a crop, in pixels."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The decoders of a data set.

    Attributes:
        input_shape: `(height, width, channels)` of the decoded images.
        train: `(encoded, seed) -> image`, a pure function of its arguments; `seed` is `(2,)` integers.
        evaluation: `encoded -> image`.
        center: value that both subtract from the pixels 0..255, per channel or for all channels.
        scale: value by which both then divide.
    """

    input_shape: tuple[int, int, int]
    train: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    evaluation: Callable[[tf.Tensor], tf.Tensor]
    center: tuple[float, ...] | float
    scale: tuple[float, ...] | float


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """One way to prepare photographs, for any image size.

    Attributes:
        train: `(encoded, seed, image_size) -> (image_size, image_size, 3)`, a pure function of its arguments.
        evaluation: `(encoded, image_size) -> (image_size, image_size, 3)`.
        image_size: image size of the published models, in pixels; None if there is none.
        center: value that both subtract from the pixels 0..255, per channel.
        scale: value by which both then divide.
    """

    train: Callable[[tf.Tensor, tf.Tensor, int], tf.Tensor]
    evaluation: Callable[[tf.Tensor, int], tf.Tensor]
    image_size: int | None
    center: tuple[float, ...]
    scale: tuple[float, ...]

    def at(self, image_size: int | None) -> Preparation:
        """Returns the decoders for one image size, in pixels. Default: that of the published models."""
        size = image_size or self.image_size
        return Preparation(
            (size, size, 3),
            train=lambda encoded, seed: self.train(encoded, seed, size),
            evaluation=lambda encoded: self.evaluation(encoded, size),
            center=self.center,
            scale=self.scale,
        )


def resnet_train(encoded: tf.Tensor, seed: tf.Tensor, image_size: int = 224) -> tf.Tensor:
    """Crops at random, resizes, flips at random, and normalises by ImageNet's mean and standard deviation.

    Args:
        encoded: scalar string, the bytes of a JPEG file (or PNG, BMP, GIF).
        seed: `(2,)` non-negative integers; the same seed gives the same crop and flip.
        image_size: height and width of the result, in pixels.

    Returns:
        `(image_size, image_size, 3)` float32.
    """
    return _normalize(_random_crop_and_flip(encoded, seed, image_size))


def resnet_evaluation(encoded: tf.Tensor, image_size: int = 224) -> tf.Tensor:
    """Crops the central square with 7/8 of the shorter side, resizes and normalises it.

    The result is the central `image_size` square of the image scaled to a shorter side of 8/7 `image_size`. Cropping
    before resizing avoids decoding the rest of the image.

    Args:
        encoded: scalar string, the bytes of a JPEG file (or PNG, BMP, GIF).
        image_size: height and width of the result, in pixels.

    Returns:
        `(image_size, image_size, 3)` float32.
    """

    def central_square(height: tf.Tensor, width: tf.Tensor) -> Window:
        side = tf.cast(tf.round(CROP_FRACTION * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
        side = tf.maximum(side, 1)
        return (height - side) // 2, (width - side) // 2, side, side

    return _normalize(_resized(decode_window(encoded, central_square), image_size))


def inception_train(encoded: tf.Tensor, seed: tf.Tensor, image_size: int = 299) -> tf.Tensor:
    """Crops at random, resizes, flips at random, and scales to [-1, 1]. The colours are not distorted.

    Args:
        encoded: scalar string, the bytes of a JPEG file (or PNG, BMP, GIF).
        seed: `(2,)` non-negative integers; the same seed gives the same crop and flip.
        image_size: height and width of the result, in pixels.

    Returns:
        `(image_size, image_size, 3)` float32.
    """
    return scale_to_unit_range(_random_crop_and_flip(encoded, seed, image_size))


def inception_evaluation(encoded: tf.Tensor, image_size: int = 299) -> tf.Tensor:
    """Crops the central 87.5 % of the height and of the width, resizes them to a square and scales to [-1, 1].

    The aspect ratio is not preserved. The crop is that of `tf.image.central_crop`.

    Args:
        encoded: scalar string, the bytes of a JPEG file (or PNG, BMP, GIF).
        image_size: height and width of the result, in pixels.

    Returns:
        `(image_size, image_size, 3)` float32.
    """

    def central_part(height: tf.Tensor, width: tf.Tensor) -> Window:
        margin = (1 - CROP_FRACTION) / 2  # a power of two: exact
        top = tf.cast(margin * tf.cast(height, tf.float32), tf.int32)
        left = tf.cast(margin * tf.cast(width, tf.float32), tf.int32)
        return top, left, height - 2 * top, width - 2 * left

    return scale_to_unit_range(_resized(decode_window(encoded, central_part), image_size))


def resize_whole(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes the whole image to a square and scales it to [-1, 1]. The aspect ratio is not preserved.

    Args:
        encoded: scalar string, the bytes of an image file.
        image_size: height and width of the result, in pixels.

    Returns:
        `(image_size, image_size, 3)` float32.
    """
    return scale_to_unit_range(_resized(decode_rgb(encoded), image_size))


PREPROCESSING = {
    "resnet": Preprocessing(
        resnet_train,
        resnet_evaluation,
        image_size=224,
        center=tuple(255.0 * mean for mean in MEAN),
        scale=tuple(255.0 * deviation for deviation in STDDEV),
    ),
    "inception": Preprocessing(
        inception_train, inception_evaluation, image_size=299, center=(127.5,) * 3, scale=(127.5,) * 3
    ),
    "resize": Preprocessing(
        lambda encoded, _, image_size: resize_whole(encoded, image_size),
        resize_whole,
        image_size=None,
        center=(127.5,) * 3,
        scale=(127.5,) * 3,
    ),
}


def scale_to_unit_range(image: tf.Tensor) -> tf.Tensor:
    """Scales pixels from [0, 255] to [-1, 1]."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def _normalize(image: tf.Tensor) -> tf.Tensor:
    """Returns (pixel / 255 - mean) / standard deviation, per channel.

    It is computed as one scale and one offset over rows of pixels, because broadcasting over a last axis of length 3
    takes as long as decoding.
    """
    height, width, _ = image.shape
    scale = np.tile(1.0 / (255.0 * np.array(STDDEV)), width).astype(np.float32)
    offset = np.tile(-np.array(MEAN) / np.array(STDDEV), width).astype(np.float32)
    return tf.reshape(tf.reshape(image, (height, width * 3)) * scale + offset, (height, width, 3))


def _random_crop_and_flip(encoded: tf.Tensor, seed: tf.Tensor, image_size: int) -> tf.Tensor:
    """Returns a random crop, resized and flipped with probability 1/2; pixels are in [0, 255]."""
    # Negative, so it never equals the crop seed of another example. This is cheaper than splitting the seed.
    flip_seed = tf.bitwise.invert(seed)
    crop = decode_window(encoded, lambda height, width: random_window(height, width, seed))
    image = _resized(crop, image_size)
    return tf.image.stateless_random_flip_left_right(image, flip_seed)


def random_window(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor) -> Window:
    """Draws the window `(top, left, height, width)` of a training crop.

    It has 8 % to 100 % of the area and an aspect ratio of 3/4 to 4/3.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        seed: `(2,)` integers.
    """
    # The bounding box is the whole image, so `min_object_covered` above 0.08 would increase the minimum area.
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.stack([height, width, 3]),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RATIO_RANGE,
        area_range=AREA_RANGE,
        max_attempts=100,
    )
    return begin[0], begin[1], size[0], size[1]


def decode_window(encoded: tf.Tensor, window: Callable[[tf.Tensor, tf.Tensor], Window]) -> tf.Tensor:
    """Decodes a window of an image. Of a JPEG file only the window is decoded.

    Args:
        encoded: scalar string, the bytes of an image file.
        window: a function of the image's height and width that returns `(top, left, height, width)` in pixels.

    Returns:
        `(height, width, 3)` uint8.
    """

    def from_other() -> tf.Tensor:
        image = decode_rgb(encoded)
        shape = tf.shape(image)
        return tf.image.crop_to_bounding_box(image, *window(shape[0], shape[1]))

    return tf.cond(tf.io.is_jpeg(encoded), lambda: decode_jpeg_window(encoded, window), from_other)


def decode_jpeg_window(encoded: tf.Tensor, window: Callable[[tf.Tensor, tf.Tensor], Window]) -> tf.Tensor:
    """Decodes only a window of a JPEG file; arguments and result as for `decode_window`."""
    shape = tf.io.extract_jpeg_shape(encoded)
    return tf.io.decode_and_crop_jpeg(
        encoded, tf.stack(window(shape[0], shape[1])), channels=3, dct_method="INTEGER_ACCURATE"
    )


def decode_rgb(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a whole JPEG, PNG, WebP, GIF or BMP file to `(height, width, 3)` uint8; of a GIF the first frame."""
    # TensorFlow does not convert a WebP with transparency to RGB.
    is_webp = tf.equal(tf.strings.substr(encoded, 8, 4), "WEBP")
    return tf.cond(is_webp, lambda: decode_image(encoded, 0)[..., :3], lambda: decode_image(encoded, 3))


def decode_image(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a whole image file to uint8, and refuses an animated WebP.

    TensorFlow 2.21 writes four channels of an animated WebP into memory for three, which kills the process.

    Args:
        encoded: scalar string, the bytes of an image file.
        channels: number of channels; 0 for that of the file.

    Returns:
        `(height, width, channels)` uint8; of a GIF the first frame.
    """
    is_extended_webp = tf.equal(tf.strings.substr(encoded, 8, 8), "WEBPVP8X")
    flags = tf.io.decode_raw(tf.strings.substr(encoded, 20, 1), tf.uint8)[0]  # No image is shorter than this.
    is_animated = tf.logical_and(is_extended_webp, flags & 0x02 > 0)
    with tf.control_dependencies([tf.debugging.Assert(tf.logical_not(is_animated), ["animated WebP"])]):
        return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def _resized(crop: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes bilinearly, without antialiasing, to `(image_size, image_size, 3)` float32."""
    crop.set_shape((None, None, 3))
    image = tf.image.resize(crop, (image_size, image_size), method="bilinear")
    return tf.ensure_shape(image, (image_size, image_size, 3))
