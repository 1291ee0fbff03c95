"""Tables 1 and 2, measured from the primitives and the rules.

Every primitive is evaluated and differentiated on one example of random numbers. Its gradient is identified by
comparison with the terms that a gradient to B may consist of, and its locality follows from that term. The primitives
of a rule are found by setting one of its weights at a time to 1, and comparing R with each primitive.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.alignments import RULES, Alignment, KernelView, LayerView, primitives
from neural_alignment.operations import DenseMap

PRIMITIVES: dict[str, Callable[..., tf.Tensor]] = {
    name: getattr(primitives, name) for name in ("decay", "amp", "null", "sparse", "self_", "angle")
}
"""The primitives of Table 1; the library may have more."""

PAPER_RULES = ("feedback", "weight_mirror", "information", "symmetric", "activation", "kolen_pollack", "sign_symmetry")
"""The rules of Table 2, and two rules that only the text of the paper mentions; the library has more."""


class Term(NamedTuple):
    """A possible gradient to B.

    Attributes:
        text: the term in the notation of the paper.
        value: value for one example, in the layout of W, `(inputs, outputs)`.
        local: whether it is local by the criteria of section 3.1: the input of the layer does not pass through B, and
            W is not read.
    """

    text: str
    value: tf.Tensor
    local: bool = True


class Probe:
    """One example of a layer of 4 inputs and 3 outputs, with random numbers for all its signals."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.x, self.error = (tf.constant(rng.normal(size=(1, size))) for size in (4, 3))
        self.forward, self.backward = (tf.constant(rng.normal(size=(4, 3))) for _ in range(2))
        self.output = self.x @ self.forward

    def evaluate(self, primitive: Callable[..., tf.Tensor], backward: tf.Tensor) -> tf.Tensor:
        """Returns the primitive's value; its arguments are found by their names."""
        signals = {
            "forward_kernel": self.forward,
            "backward_kernel": backward,
            "forward_projection": self.output,
            "backward_projection": self.x @ backward,
            "reconstruction": self.output @ tf.transpose(backward),
            "inputs": self.x,
            "pseudogradient": self.error @ tf.transpose(backward),
        }
        return primitive(*(signals[name] for name in inspect.signature(primitive).parameters))

    def regulariser(self, rule: Alignment, backward: tf.Tensor) -> tf.Tensor:
        """Returns R of a rule."""
        return rule(LayerView(DenseMap(), self.x, self.forward, tf.transpose(backward)))

    def terms(self) -> list[Term]:
        """Returns the possible gradients."""
        x, z, e, b, w = (tf.squeeze(v) for v in (self.x, self.output, self.error, self.backward, self.forward))
        return [
            Term("B_l", b),
            Term("-x_l x_{l+1}^T", -tf.tensordot(x, z, 0)),
            Term("B_l x_{l+1} x_{l+1}^T", b @ tf.tensordot(z, z, 0)),
            Term("x_l x_l^T B_l", tf.tensordot(x, x, 0) @ b, local=False),
            Term("-W_l^T", -w, local=False),
            Term("x_l d_{l+1}^T", tf.tensordot(x, e, 0)),
        ]

    def gradient(self, value: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Returns the gradient of `value` at B; zero where it does not depend on it."""
        with tf.GradientTape() as tape:
            tape.watch(self.backward)
            result = value(self.backward)
        return tape.gradient(result, self.backward, unconnected_gradients=tf.UnconnectedGradients.ZERO)


class Primitive(NamedTuple):
    """One row of Table 1: a primitive, the formula in its docstring, its gradient to B, and whether that is local."""

    name: str
    formula: str
    gradient: str
    local: bool


def table_1() -> list[Primitive]:
    """Returns the rows of Table 1, the local primitives first.

    Raises:
        LookupError: if a gradient is none of the terms.
    """
    probe = Probe()
    rows = []
    for name, function in PRIMITIVES.items():
        gradient = probe.gradient(functools.partial(probe.evaluate, function))
        term = _matching(gradient, [(term, term.value) for term in probe.terms()], name)
        formula = inspect.getdoc(function).splitlines()[0].partition(": ")[2].rstrip(".")
        rows.append(Primitive(name, formula, term.text, term.local))
    return sorted(rows, key=lambda row: (not row.local, list(PRIMITIVES).index(row.name)))


class Taxon(NamedTuple):
    """One row of Table 2: a rule, the primitives of R, and whether R is local and the error is carried without W."""

    rule: str
    primitives: frozenset[str]
    local: bool


def table_2() -> list[Taxon]:
    """Returns the primitives of each of `PAPER_RULES`, the local rules first."""
    local = {row.name for row in table_1() if row.local}
    made_of = {name: frozenset(_primitives_of(RULES[name])) for name in PAPER_RULES}
    rows = [Taxon(name, own, own <= local and not _carries_forward(RULES[name])) for name, own in made_of.items()]
    return sorted(rows, key=lambda row: not row.local)


def _primitives_of(rule: type[Alignment]) -> set[str]:
    """Returns the primitives of a rule, each found from R with only one weight."""
    probe = Probe()
    gradients = [(name, probe.gradient(functools.partial(probe.evaluate, each))) for name, each in PRIMITIVES.items()]
    weights = [name for name, option in rule.model_fields.items() if option.is_required()]
    found = {"angle"} if rule.tie_gradient else set()
    for weight in weights:
        single = rule(**{name: float(name == weight) for name in weights})
        gradient = probe.gradient(functools.partial(probe.regulariser, single))
        found.add(_matching(gradient, gradients, f"{rule.__name__}.{weight}"))
    return found


def _carries_forward(rule: type[Alignment]) -> bool:
    """Whether the error is sent backward through a function of W."""
    probe = Probe()
    instance = rule(**{name: 1.0 for name, option in rule.model_fields.items() if option.is_required()})
    kernels = [KernelView(forward, probe.backward) for forward in (probe.forward, -probe.forward)]
    carried = [instance.carried_kernel(each) for each in kernels]
    return bool(tf.reduce_any(carried[0] != carried[1]))


def _matching(value: tf.Tensor, candidates: Sequence[tuple[Any, tf.Tensor]], what: str) -> Any:
    """Returns the key of the candidate that equals `value`; `what` is its name in an error."""
    for key, candidate in candidates:
        if np.allclose(value, candidate, rtol=1e-9):
            return key
    raise LookupError(f"the gradient of {what} is none of the terms of Table 1: add its term to `Probe.terms`")
