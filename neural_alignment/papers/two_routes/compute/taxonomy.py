"""Tables 1 and 2, measured from the primitives and the rules.

Every primitive is evaluated and differentiated on one example of random numbers. Its gradient is identified by
comparison with the terms that a gradient to B may consist of, and its locality follows from that term. The primitives
of a rule are found by setting one of its weights at a time to 1, and comparing R with each primitive.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.alignments import RULES, Alignment, KernelView, LayerView, primitives
from neural_alignment.operations import DenseMap
from neural_alignment.reporting import Row

PRIMITIVES = {name: getattr(primitives, name) for name in ("decay", "amp", "null", "sparse", "self_", "angle")}
"""The primitives of Table 1; the library may have more."""

PAPER_RULES = ("feedback", "weight_mirror", "information", "symmetric", "activation", "kolen_pollack", "sign_symmetry")
"""The rules of Table 2, and two rules that only the text of the paper mentions; the library has more."""


class Term(NamedTuple):
    """A possible gradient to B: its notation in the paper, its value for one example `(inputs, outputs)`, its locality.

    It is local by section 3.1 if the input of the layer does not pass through B, and W is not read.
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

    def primitive(self, function: Callable[..., tf.Tensor]) -> tf.Tensor:
        """Returns the value of a primitive; its arguments are found by their names."""
        signals = {
            "forward_kernel": self.forward,
            "backward_kernel": self.backward,
            "forward_projection": self.output,
            "backward_projection": self.x @ self.backward,
            "reconstruction": self.output @ tf.transpose(self.backward),
            "inputs": self.x,
            "pseudogradient": self.error @ tf.transpose(self.backward),
        }
        return function(*(signals[name] for name in inspect.signature(function).parameters))

    def regulariser(self, rule: Alignment) -> tf.Tensor:
        """Returns R of a rule."""
        return rule(LayerView(DenseMap(), self.x, self.forward, tf.transpose(self.backward)))

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

    def gradient(self, value: Callable[[Any], tf.Tensor], of: Any) -> tf.Tensor:
        """Returns the gradient at B of `primitive` or `regulariser` of a primitive or rule; zero if B has no effect."""
        with tf.GradientTape() as tape:
            tape.watch(self.backward)
            result = value(of)
        return tape.gradient(result, self.backward, unconnected_gradients=tf.UnconnectedGradients.ZERO)


GROUPS = {True: "local", False: "non-local"}


def table_1() -> list[Row]:
    """Returns the rows of Table 1, the local primitives first; `angle` is from Appendix D.3.

    Formulas are those of the docstrings of the primitives, gradients are measured. d is the upstream error.

    Raises:
        LookupError: if a gradient is none of the terms.
    """
    rows = []
    for name, term in _gradients().items():
        formula = inspect.getdoc(PRIMITIVES[name]).splitlines()[0].partition(": ")[2].rstrip(".")
        row = {"group": GROUPS[term.local], "primitive": name.rstrip("_")}
        rows.append(row | {"formula_as_documented": formula, "gradient": term.text})
    return rows


def _gradients() -> dict[str, Term]:
    """Returns the gradient of each primitive, the local ones first."""
    probe = Probe()
    terms = [(term, term.value) for term in probe.terms()]
    found = {name: _matching(probe.gradient(probe.primitive, each), terms, name) for name, each in PRIMITIVES.items()}
    return dict(sorted(found.items(), key=lambda item: not item[1].local))


def table_2() -> list[Row]:
    """Returns a row for each of `PAPER_RULES`, the local rules first, with a truth value for each primitive.

    A rule is local if all its primitives are, and the error is carried backward without W.
    """
    rows, gradients = [], _gradients()
    for rule in PAPER_RULES:
        own = _primitives_of(RULES[rule], gradients)
        local = all(gradients[name].local for name in own) and not _carries_forward(RULES[rule])
        rows.append({"group": GROUPS[local], "rule": rule} | {name: name in own for name in gradients})
    return sorted(rows, key=lambda row: row["group"])


def _primitives_of(rule: type[Alignment], gradients: Mapping[str, Term]) -> set[str]:
    """Returns the primitives of a rule, each found from R with only one weight."""
    probe, candidates = Probe(), [(name, term.value) for name, term in gradients.items()]
    weights = [name for name, option in rule.model_fields.items() if option.is_required()]
    found = {"angle"} if rule.tie_gradient else set()
    for weight in weights:
        single = rule(**{name: float(name == weight) for name in weights})
        found.add(_matching(probe.gradient(probe.regulariser, single), candidates, f"{rule.__name__}.{weight}"))
    return found


def _carries_forward(rule: type[Alignment]) -> bool:
    """Whether the error is sent backward through a function of W."""
    probe = Probe()
    instance = rule(**{name: 1.0 for name, option in rule.model_fields.items() if option.is_required()})
    kernels = [KernelView(DenseMap(), forward, probe.backward) for forward in (probe.forward, -probe.forward)]
    carried = [instance.carried_kernel(each) for each in kernels]
    return bool(tf.reduce_any(carried[0] != carried[1]))


def _matching(value: tf.Tensor, candidates: Sequence[tuple[Any, tf.Tensor]], what: str) -> Any:
    """Returns the key of the candidate that equals `value`; `what` is its name in an error."""
    for key, candidate in candidates:
        if np.allclose(value, candidate, rtol=1e-9):
            return key
    raise LookupError(f"the gradient of {what} is none of the terms of Table 1: add its term to `Probe.terms`")
