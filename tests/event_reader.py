"""Reads event files with TensorBoard's own reader."""

from __future__ import annotations

import re
from pathlib import Path

import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams

EVERY = {"tensors": 0}
"""Keeps all points, where TensorBoard would keep a sample."""


def run_names(folder: Path) -> set[str]:
    """Returns the names of the runs that `tensorboard --logdir FOLDER` shows."""
    return set(EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload().Runs())


def accumulator(run_dir: Path) -> EventAccumulator:
    """Returns the reader of a run directory, after it has read all event files."""
    reader = EventAccumulator(str(run_dir), size_guidance=EVERY)
    return reader.Reload()


def points(run_dir: Path, plugin: str = "scalars") -> dict[str, list[tuple[int, float]]]:
    """Returns tag -> step and value of each point; the value is the number of dimensions for other plugins."""
    reader = accumulator(run_dir)
    return {
        tag: [(event.step, _value(event.tensor_proto)) for event in reader.Tensors(tag)]
        for tag in reader.Tags()["tensors"]
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == plugin
    }


def _value(tensor) -> float:
    array = tf.make_ndarray(tensor)
    return float(array) if array.ndim == 0 and array.dtype.kind == "f" else array.ndim


def layouts(run_dir: Path) -> list[layout_pb2.Layout]:
    """Returns all layouts of the dashboard CUSTOM SCALARS."""
    events = accumulator(run_dir).Tensors("custom_scalars__config__")
    return [layout_pb2.Layout.FromString(tf.make_ndarray(event.tensor_proto).item()) for event in events]


def charts(run_dir: Path) -> dict[str, set[str]]:
    """Returns title -> tags of each chart of the layout."""
    tags = points(run_dir)
    [layout] = layouts(run_dir)
    return {
        chart.title: {tag for tag in tags if any(re.match(pattern, tag) for pattern in chart.multiline.tag)}
        for category in layout.category
        for chart in category.chart
    }


def session(run_dir: Path):
    """Returns the settings of a run, and its status, in the dashboard HPARAMS."""
    content = accumulator(run_dir).PluginTagToContent(hparams.PLUGIN_NAME)
    start = hparams.parse_session_start_info_plugin_data(content[hparams.SESSION_START_INFO_TAG])
    end = hparams.parse_session_end_info_plugin_data(content[hparams.SESSION_END_INFO_TAG])
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return settings, end.status


def experiment(folder: Path):
    """Returns the columns of the dashboard HPARAMS."""
    content = accumulator(folder).PluginTagToContent(hparams.PLUGIN_NAME)
    return hparams.parse_experiment_plugin_data(content[hparams.EXPERIMENT_TAG])
