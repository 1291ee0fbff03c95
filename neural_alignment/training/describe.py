"""Describes a run before it is trained: layers, rules, parameters, and the cost of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from neural_alignment.config import Config
from neural_alignment.errors import RunError
from neural_alignment.optimization import LossRates, described
from neural_alignment.training import initial_state, setup
from neural_alignment.training.costs import (
    LayerCost,
    backpropagation_step,
    entries,
    layer_costs,
    network_step,
    products_of_weights,
)
from neural_alignment.training.model import AlignedModel, connections

_FIXED = ("gamma", "beta")
"""Weights of batch normalization that `model.batch_norm_trainable: false` freezes."""


class Description(NamedTuple):
    """A run before it is trained; `str` gives all of it as lines.

    Attributes:
        layers: a row per connection.
        facts: lines about parameters, data, rules, optimizers and execution.
        costs: lines about the cost of each kind of step.
    """

    layers: list[LayerCost]
    facts: list[str]
    costs: list[str]

    HEADER = ("layer", "rule", "forward", "backward", "MFLOP", "R's products")

    def cells(self) -> list[list[str]]:
        """Returns the row of each layer as text."""
        return [
            [
                row.name,
                row.rule,
                f"{row.forward:,}",
                f"{row.backward:,}",
                f"{row.product / 1e6:.3f}",
                f"{row.products:g}",
            ]
            for row in self.layers
        ]

    def table(self) -> str:
        """Returns the layers as lines with aligned columns."""
        width = max((len(row.name) for row in self.layers), default=len(self.HEADER[0]))
        form = f"{{:{width}}}  {{:15}} {{:>12}} {{:>12}} {{:>10}}  {{}}"
        return "\n".join(form.format(*cells) for cells in (self.HEADER, *self.cells()))

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.facts, "", *self.costs])


def describe(config: Config) -> str:
    """Returns a table of a run's layers and the cost of its steps. Raises the errors of `description`."""
    return str(description(config))


def description(config: Config) -> Description:
    """Returns a run's layers and the cost of its steps.

    Raises:
        DataError: if the configuration does not determine shapes and counts, and the data cannot be read.
        ConfigError: if the pattern of a rule matches no layer.
    """
    dataset = setup.data_facts(config)
    model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    rows = layer_costs(model, config.batch_size, config.optimization.minibatches)
    kernels = [weight.path.split("/")[-1] for weight in model.weights]
    forward = sum(
        entries(w) for w, name in zip(model.weights, kernels, strict=True) if w.trainable and "backward" not in name
    )
    backward = sum(row.backward for row in rows)
    fixed = sum(
        entries(w) for w, name in zip(model.weights, kernels, strict=True) if name in _FIXED and not w.trainable
    )
    facts = [
        f"parameters  forward {forward:,} (batch normalisation included)  backward {backward:,}"
        + (f"  not trained {fixed:,} (scale and shift of batch normalisation)" if fixed else ""),
        f"data        {dataset.train_examples:,} training and {dataset.validation_examples:,} validation examples, "
        f"{dataset.steps_per_epoch:,} steps per epoch at batch {config.batch_size}",
        *_origin(config),
        *_rules(config),
        *_optimizers(config),
        *_reach(model, config),
        *_execution(config),
    ]
    return Description(rows, facts, _step_costs(rows, model, config.batch_size // config.optimization.minibatches))


def _rules(config: Config) -> list[str]:
    """Returns a line for each rule with all its options."""
    rules = [(rule.rule, rule.model_dump(exclude={"rule"}, exclude_defaults=True)) for rule in config.rules]
    return [
        f"rule        {name}" + (f": {', '.join(f'{key} {value}' for key, value in _flat(options))}" if options else "")
        for name, options in rules
    ]


def _flat(options: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Returns the key path and the value of each nested option."""
    found = []
    for key, value in options.items():
        inside = isinstance(value, Mapping)
        found += _flat(value, f"{path}{key}.") if inside else [(f"{path}{key}", described(value))]
    return found


def _optimizers(config: Config) -> list[str]:
    """Returns lines about the optimizer of each loss, the loss rates, and the order of J and R."""
    plan = config.optimization
    moved = {"forward": "J", "backward": "R"} if plan.backward else {"forward": "J + R"}
    if not any(rule.learns for rule in config.rules):
        moved = {"forward": "J"}
    lines = [f"optimizer   {loss}: {plan.optimizers[key].summary(config.batch_size)}" for key, loss in moved.items()]
    if plan.loss_rates != LossRates():
        lines.append(
            f"loss rates  J {described(plan.loss_rates.forward)}, R {described(plan.loss_rates.backward)} "
            "(epochs of global steps)"
        )
    turns = [f"R only for {plan.delay_epochs:g} epochs"] if plan.delay_epochs else []
    turns += [f"one step of R to {plan.alternation} of J"] if plan.alternation else []
    return lines + ([f"turns       {', then '.join(turns)}"] if turns else [])


def _reach(model: AlignedModel, config: Config) -> list[str]:
    """Returns a line about the variables that R moves, if R moves more than B."""
    layers = [each.name for each in connections(model) if each.alignment.trains_forward]
    if not layers:
        return []
    plan = config.optimization
    by = f"optimization.forward ({plan.forward.name}), by the sum of the gradients of J and R"
    if plan.backward is not None:
        by = f"optimization.backward ({plan.backward.name}); J moves W by optimization.forward ({plan.forward.name})"
    return [f"R moves     B and W of {len(layers)} layers (update_forward: {', '.join(layers)}) by {by}"]


def _origin(config: Config) -> list[str]:
    """Returns a line about the initial state of `init_from`, if there is one."""
    options = config.init_from
    if options is None:
        return []
    loaded = "weights, optimizer and global step" if options.optimizer else "weights"
    fit = "all must fit" if options.strict else "weights that do not fit keep their initial values"
    try:
        source = initial_state.find(options.path, options.state)
    except RunError as error:  # Not an error here: a run that has begun no longer needs the state.
        return [f"starts from {options.path}: {loaded}; {fit}; not found now ({error})"]
    return [f"starts from {source}: {loaded}; {fit}"]


def _execution(config: Config) -> list[str]:
    """Returns lines about the options of evaluation, logging, checkpoints and runtime that are not defaults."""
    sections = {name: getattr(config, name) for name in ("evaluation", "logging", "checkpoints", "runtime")}
    changed = {name: _flat(options.model_dump(exclude_defaults=True)) for name, options in sections.items()}
    lines = {name: ", ".join(f"{key} {value}" for key, value in pairs) for name, pairs in changed.items() if pairs}
    return [f"{name:11} {line}" for name, line in lines.items()]


def _step_costs(rows: list[LayerCost], model: AlignedModel, part: int) -> list[str]:
    """Returns lines about the cost of each kind of step, and about the values that a rule for the whole network stores.

    Args:
        rows: the `layer_costs` of the network.
        model: the network.
        part: number of examples that share one computation of the kernels that carry the error.
    """
    if not rows:
        return ["cost        no layer with a product is found"]
    forward, backpropagation = sum(row.product for row in rows), backpropagation_step(rows, model)
    shared = products_of_weights(rows) / part
    regulariser = sum(row.products * row.product for row in rows)
    of_r_step = sum(row.products * row.interval * row.product for row in rows)
    both = "J + R on average" if any(row.interval > 1 for row in rows) else "J + R step"
    kinds = {"backpropagation": backpropagation, "J step": backpropagation + shared}
    more = []
    if model.bound_rule is None and any(each.alignment.learns for each in connections(model)):
        kinds |= {"R step": forward + of_r_step, both: backpropagation + shared + regulariser}
    if model.bound_rule is not None:
        kinds["J step"] = network_step(model)
        kept = sum(map(entries, model.bound_rule.kept_values))
        rule = next(row.rule for row in rows if row.rule != "backpropagation")
        more = ["", f"kept        {kept:,} numbers by {rule}, for the whole network"]
    return [
        *(
            f"{kind:16} {f'{cost / 1e9:.4g}':>10} GFLOP per example  {cost / backpropagation:.2f}"
            for kind, cost in kinds.items()
        ),
        *more,
    ]
