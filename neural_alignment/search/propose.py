"""Proposals by hyperopt: what is tried next, given what has been tried."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import hyperopt
import numpy as np
from hyperopt import base

from neural_alignment.search.plan import Plan
from neural_alignment.search.spaces import Settings

State = tuple[str, float | None]
"""What is known of a proposal: new, ok or fail in hyperopt's words, and its score where there is one."""


class Proposer:
    """Draws the settings of trials: a function of the plan's seed and of the trials so far, and of nothing else.

    hyperopt is asked as its own `fmin` asks it, one trial at a time; its store of trials is made anew from the
    records for each question, so that nothing has to be saved but settings and scores.

    Args:
        plan: the search.
    """

    def __init__(self, plan: Plan):
        self._space = plan.checked_space()
        self._seed = plan.seed
        self._suggest: Callable[..., Any] = hyperopt.rand.suggest
        if plan.algorithm == "tpe":
            self._suggest = functools.partial(hyperopt.tpe.suggest, n_startup_jobs=plan.startup_trials, verbose=False)
        self._domain = base.Domain(lambda _: None, self._space.nodes())

    def propose(self, number: int, before: Mapping[int, tuple[Settings, State]]) -> Settings:
        """Returns name -> value of each quantity that is drawn.

        Args:
            number: of the trial; with the seed it decides the random numbers.
            before: number -> what has been drawn, and what came of it, for all trials so far. One that is still
                running has no score and counts as a bad one, so that others do not crowd around it; so does one that
                has failed.
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

    def _document(self, trials: base.Trials, number: int, values: Settings, state: State) -> dict[str, Any]:
        """Returns a trial as hyperopt keeps it."""
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
