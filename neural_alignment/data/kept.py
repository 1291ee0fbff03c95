"""Decoded examples that stay in memory for the next run in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator

from neural_alignment.data.pipeline import Examples

MAX_BYTES = 10**9
"""Maximum size in bytes of the images that a process keeps; the oldest are dropped first."""

_kept: dict[Hashable, Examples] | None = None
"""None outside of `examples_kept`."""


@contextlib.contextmanager
def examples_kept() -> Iterator[None]:
    """Keeps the examples that are decoded within the context, so that a second run does not decode them again."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def decoded(key: Hashable | None, decode: Callable[[], Examples]) -> Examples:
    """Returns the kept examples of a key, or decodes them. Examples with damaged records are not kept.

    Args:
        key: identifies the files, in their present state, and their decoding; None if that is unknown.
        decode: decodes the examples.
    """
    if _kept is None or key is None:
        return decode()
    examples = _kept.pop(key, None) or decode()
    if examples.sound is None and examples.images.nbytes <= MAX_BYTES:
        for array in (examples.images, examples.labels):
            array.setflags(write=False)
        _kept[key] = examples
        while sum(each.images.nbytes for each in _kept.values()) > MAX_BYTES:
            del _kept[next(iter(_kept))]
    return examples
