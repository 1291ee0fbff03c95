"""Proposals by hyperopt: the settings of the next trial, given the trials so far."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import hyperopt
import numpy as np
from hyperopt import base

from neural_alignment.search.plan import Plan
from neural_alignment.search.spaces import Settings

ProposalState = tuple[str, float | None]
"""The state of a proposal in hyperopt (`new`, `ok` or `fail`), and its score, a fraction, or None."""


class Proposer:
    """Draws the settings of trials. They depend only on the plan and on the trials so far.

    It calls hyperopt in the same way as hyperopt's `fmin`, for one trial at a time. The `Trials` object of hyperopt is
    rebuilt for each call, so that only settings and scores have to be saved.

    Args:
        plan: the plan of the search.
    """

    def __init__(self, plan: Plan):
        self._space = plan.checked_space
        self._seed = plan.seed
        self._suggest: Callable[..., Any] = hyperopt.rand.suggest
        if plan.algorithm == "tpe":
            self._suggest = functools.partial(hyperopt.tpe.suggest, n_startup_jobs=plan.startup_trials, verbose=False)
        self._domain = base.Domain(lambda _: None, self._space.nodes())

    def propose(self, number: int, before: Mapping[int, tuple[Settings, ProposalState]]) -> Settings:
        """Returns name -> value of each sampled quantity.

        Args:
            number: number of the trial; together with the seed it determines the random numbers.
            before: number -> drawn settings and state, for all trials so far. A running or failed trial has no score.
                TPE treats it as a bad one, so that further trials avoid its neighbourhood.
        """
        trials = base.Trials()
        documents = [self._document(trials, each, *known) for each, known in sorted(before.items())]
        if documents:
            trials.insert_trial_docs(documents)
        trials.refresh()
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        (document,) = self._suggest([number], self._domain, trials, seed)
        draws = document["misc"]["vals"]
        return {name: kind.value(draws[name][0]) for name, kind in self._space.sampled.items()}

    def _document(self, trials: base.Trials, number: int, values: Settings, state: ProposalState) -> dict[str, Any]:
        """Returns a trial in the form in which hyperopt stores it."""
        word, score = state
        draws = {name: kind.draw(values[name]) for name, kind in self._space.sampled.items()}
        misc = {
            "tid": number,
            "cmd": self._domain.cmd,
            "workdir": self._domain.workdir,
            "idxs": {name: [number] for name in draws},
            "vals": {name: [draw] for name, draw in draws.items()},
        }
        result = {"status": word} if score is None else {"status": word, "loss": 1.0 - score}
        (document,) = trials.new_trial_docs([number], [None], [result], [misc])
        document["state"] = base.JOB_STATE_RUNNING if word == "new" else base.JOB_STATE_DONE
        return document
