"""The recurrent network of Boopathy and Fiete 2022 and its rules through time (Appendix E), in float64 NumPy."""

import numpy as np
from helpers import relu


def forward(p, x):
    """Returns potentials z_1.., states s_0.. and outputs of inputs `(batch, steps, 1)`."""
    potentials, states = [], [p["initial_state"]]
    scale = np.sqrt(len(p["bias"]))
    for k in range(x.shape[1]):
        potentials.append(x[:, k] @ p["input_kernel"] + states[-1] @ p["kernel"] / scale + p["bias"])
        states.append(relu(potentials[-1]))
    outputs = [s @ p["readout"] / scale + p["offset"] for s in states[1:]]
    return potentials, states, np.stack(outputs, axis=1)


def update(rule, p, initial, x, y, miss):
    """Returns the pseudogradient of every weight."""
    live = forward(p, x)
    slots, time, _ = x.shape
    scale = np.sqrt(len(p["bias"]))
    e = 2 * (live[2] - y) / slots
    carried = p if rule in ("normal", "readout_only") else {**initial, "initial_state": p["initial_state"]}
    if miss == "initial state frozen":
        carried = initial
    through = forward(carried, x)
    before = through if rule == "align_zero" and miss != "presynaptic live" else live
    if miss == "presynaptic frozen":
        before = through
    gradient = {name: np.zeros_like(value) for name, value in p.items()}
    later = np.zeros_like(p["initial_state"])
    for k in reversed(range(time)):
        now = e[:, k] @ carried["readout"].T / scale
        frozen_gate = through[0][k] > 0
        total = frozen_gate * (later + now)
        if rule == "align_ada":
            gate = frozen_gate if miss == "own gate frozen" else live[0][k] > 0
            own = gate * (later + now if miss == "same step" else later)
        else:
            own = total
        gradient["kernel"] += before[1][k].T @ own / scale
        gradient["input_kernel"] += x[:, k].T @ own
        gradient["bias"] += own.sum(axis=0)
        gradient["readout"] += before[1][k + 1].T @ e[:, k] / scale
        later = total @ carried["kernel"].T / scale
    gradient["initial_state"] = later
    gradient["offset"] = e.sum(axis=(0, 1))
    if rule == "readout_only":
        gradient.update({name: np.zeros_like(p[name]) for name in ("kernel", "input_kernel", "bias")})
    return gradient
