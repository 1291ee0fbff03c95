"""ImageNet preprocessing against PIL and NumPy."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from neural_alignment.data import imagenet

MEAN = np.array([0.485, 0.456, 0.406])
STDDEV = np.array([0.229, 0.224, 0.225])


def bilinear(image, size):
    """Bilinear resize to a square: half-pixel centres, no antialiasing; in NumPy."""

    def weights(length):
        centre = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, length - 1)
        matrix = np.zeros((size, length))
        np.add.at(matrix, (np.arange(size), low), 1 - (centre - low))
        np.add.at(matrix, (np.arange(size), high), centre - low)
        return matrix

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(float), columns, optimize=True)


def photograph(height=150, width=200):
    """Smooth colours with an edge, which JPEG preserves well."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 17 + y / 23)], axis=-1)
    image[30:60, 40:90] = 255 - image[30:60, 40:90]
    return image.astype(np.uint8)


def pixels_of_resnet(image):
    return (np.asarray(image) * STDDEV + MEAN) * 255


def pixels_of_inception(image):
    return (np.asarray(image) + 1) * 127.5


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize(("height", "width"), [(150, 200), (201, 133), (31, 64)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_resnet_evaluation_is_the_centre_of_the_image_with_shorter_side_256(tools, kind, height, width):
    encoded = tools.encode(photograph(height, width), kind)
    side = round(min(height, width) * 224 / 256)
    top, left = (height - side) // 2, (width - side) // 2
    image = decoded(encoded)
    expected = bilinear(image[top : top + side, left : left + side], 112)
    result = imagenet.resnet_evaluation(tf.constant(encoded), 112)
    assert result.dtype == tf.float32
    # The cropping decoder interpolates colour differently in the columns at the window's border.
    border = 4 if kind == "JPEG" else 0
    inner = slice(border, 112 - border)
    np.testing.assert_allclose(
        pixels_of_resnet(result)[inner, inner], expected[inner, inner], atol=1.0 if kind == "JPEG" else 0.01
    )
    assert not np.allclose(pixels_of_resnet(result), bilinear(image, 112), atol=10)  # not the whole image


def test_resnet_evaluation_scales_to_256_then_takes_224(tools):
    """Compares with resizing first, on a ramp, for which bilinear interpolation is exact."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    whole = bilinear(ramp, 256)[16:240, 16:240]
    result = pixels_of_resnet(imagenet.resnet_evaluation(tools.encode(ramp), 224))
    np.testing.assert_allclose(result, whole, atol=0.01)


@pytest.mark.parametrize(("height", "width"), [(150, 200), (201, 133), (31, 64)])
def test_inception_evaluation_is_the_central_part(tools, height, width):
    encoded = tools.encode(photograph(height, width))
    top, left = int(height * 0.125 / 2), int(width * 0.125 / 2)
    expected = bilinear(photograph(height, width)[top : height - top, left : width - left], 99)
    result = imagenet.inception_evaluation(tf.constant(encoded), 99)
    np.testing.assert_allclose(pixels_of_inception(result), expected, atol=0.01)
    assert -1 <= np.min(result) < np.max(result) <= 1
    window = tf.image.central_crop(photograph(height, width), 0.875)
    assert window.shape[:2] == (height - 2 * top, width - 2 * left)


def test_training_crops_have_the_documented_area_and_aspect_ratio(tools):
    """The window is determined from an image whose pixels are their coordinates."""
    height, width = 160, 240
    y, x = np.mgrid[0:height, 0:width]
    encoded = tf.constant(tools.encode(np.stack([x, y, 0 * x], axis=-1)))
    areas, aspects, mirrored, lefts = [], [], [], []
    for number in range(200):
        pixels = pixels_of_inception(imagenet.inception_train(encoded, tf.constant([3, number], tf.int64), 64))
        across, down = pixels[:, :, 0], pixels[:, :, 1]
        slope = (across[0, 40] - across[0, 20]) / 20
        mirrored.append(slope < 0)
        window_width, window_height = abs(slope) * 64, (down[40, 0] - down[20, 0]) / 20 * 64
        areas.append(window_width * window_height / (height * width))
        aspects.append(window_width / window_height)
        lefts.append(across.min())
        np.testing.assert_allclose(np.diff(across[:, 5:-5], axis=1), slope, atol=0.02)
    assert 0.07 < min(areas) < 0.12
    assert 0.8 < max(areas) <= 1.0
    assert 0.72 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.37
    assert 0.35 < np.mean(mirrored) < 0.65
    assert len({round(float(left)) for left in lefts}) > 50


def test_training_crop_is_a_function_of_the_seed(tools):
    encoded = tools.encode(photograph(), "JPEG")
    first, again, other_run, other_place = (
        imagenet.resnet_train(tf.constant(encoded), tf.constant(seed, tf.int64), 64).numpy()
        for seed in ([1, 2], [1, 2], [2, 2], [1, 3])
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other_run, atol=0.1)
    assert not np.allclose(first, other_place, atol=0.1)


def test_both_preprocessings_take_the_same_crop(tools):
    seed = tf.constant([5, 6], tf.int64)
    encoded = tf.constant(tools.encode(photograph(), "JPEG"))
    resnet = pixels_of_resnet(imagenet.resnet_train(encoded, seed, 64))
    inception = pixels_of_inception(imagenet.inception_train(encoded, seed, 64))
    np.testing.assert_allclose(resnet, inception, atol=0.01)


def test_crop_in_the_decoder_equals_crop_of_the_decoded(tools):
    """A JPEG and a PNG of its decoded pixels give the same crop, although only the JPEG decoder crops."""
    jpeg = tools.encode(photograph(), "JPEG", quality=95, subsampling=0)
    png = tools.encode(decoded(jpeg))
    for number in range(5):
        seed = tf.constant([0, number], tf.int64)
        one, other = (pixels_of_resnet(imagenet.resnet_train(tf.constant(e), seed, 64)) for e in (jpeg, png))
        np.testing.assert_allclose(one, other, atol=1.0)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "L"), ("PNG", "RGBA"), ("BMP", "RGB")]
)
def test_images_of_other_kinds_come_out_as_rgb(tools, kind, mode):
    encoded = tools.encode(photograph(), kind, mode)
    for prepare, pixels in (
        (imagenet.resnet_evaluation, pixels_of_resnet),
        (imagenet.inception_evaluation, pixels_of_inception),
    ):
        result = pixels(prepare(tf.constant(encoded), 32))
        expected = pixels(prepare(tf.constant(tools.encode(decoded(encoded))), 32))
        np.testing.assert_allclose(result, expected, atol=3.0)
    assert imagenet.resnet_train(tf.constant(encoded), tf.constant([0, 0], tf.int64), 32).shape == (32, 32, 3)


def test_normalisation_uses_the_statistics_of_imagenet(tools):
    grey = np.full((40, 40, 3), 200, np.uint8)
    expected = (200 / 255 - MEAN) / STDDEV
    np.testing.assert_allclose(imagenet.resnet_evaluation(tools.encode(grey), 16)[3, 4], expected, rtol=1e-5)
    np.testing.assert_allclose(imagenet.inception_evaluation(tools.encode(grey), 16)[3, 4], 200 / 127.5 - 1, rtol=1e-5)


def test_real_photograph_against_pil(imagenet_sample):
    record = next(iter(tf.data.TFRecordDataset(str(imagenet_sample / "validation-00000-of-00002")))).numpy()
    encoded = tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0]
    image = decoded(encoded)
    height, width = image.shape[:2]
    side = round(0.875 * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    expected = bilinear(image[top : top + side, left : left + side], 224)
    difference = np.abs(pixels_of_resnet(imagenet.resnet_evaluation(tf.constant(encoded))) - expected)
    assert difference.mean() < 0.1
    assert difference[8:-8, 8:-8].max() < 2
