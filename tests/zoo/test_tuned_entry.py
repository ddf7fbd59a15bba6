"""The tuned hyper-parameters are those of the study."""

import pytest
import torch as th
from zoo.runs import TASKS

from benchmarks.lib.rows import RESULTS, read_rows
from benchmarks.sweeps import tuning
from sb3_grpo.zoo.hyperparams import hyperparams
from sb3_grpo.zoo.search_space import convert_grpo_params


def test_tuned_entry_is_the_chosen_trial_of_the_study():
    study = tuning.load_study("cartpole_again")
    assert len(study.trials) >= 40
    chosen = tuning.choose(read_rows(RESULTS / "tuning_cartpole_again.jsonl"), tuning.best_trials(study, 10))
    entry = dict(hyperparams[TASKS])
    # as RL Zoo reads it
    entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"nn": th.nn})  # noqa: S307 (our own file)
    entry["n_groups"] = None
    for name, value in convert_grpo_params(study.trials[chosen].params).items():
        assert entry[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), name
