from typing import Any

import pytest
import torch as th

from benchmarks.lib.minigrid import make_python_envs
from benchmarks.performance.minigrid_speed import SETTINGS, EachView, speed_table
from benchmarks.sweeps.minigrid_tasks import SUITES, make_model


# the protocol's minibatches do not divide its rollouts
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 768")
@pytest.mark.parametrize("method", ["PPO", "GRPO"])
def test_both_networks_compute_the_same(method):
    env: Any = make_python_envs(SUITES["mt3"], 0, 1)
    models = [make_model(method, env, 0), make_model(method, env, 0, features_extractor_class=EachView)]
    obs, _ = models[0].policy.obs_to_tensor(env.reset())
    for training in (True, False):
        for model in models:
            model.policy.set_training_mode(training)
        with th.no_grad():
            (values, _, log_probs), (others, _, other_log_probs) = (
                m.policy.evaluate_actions(obs, th.zeros(3)) for m in models
            )
        th.testing.assert_close(values, others, atol=1e-5, rtol=0)
        th.testing.assert_close(log_probs, other_log_probs, atol=1e-5, rtol=0)
    assert isinstance(models[1].policy.pi_features_extractor, EachView)


def test_table_compares_within_repeats():
    seconds = {name: [1.0, 2.0, 4.0] for name in SETTINGS}
    last = list(SETTINGS)[-1]
    seconds[last] = [0.5, 0.5, 0.5]  # 2, 4 and 8 times as fast
    table = speed_table({"PPO": seconds})
    cells = [list(column.cells) for column in table.columns]
    assert [column[-1] for column in cells] == ["PPO", last, "0.50", "4.0", "2.0", "8.0", "10.0"]
    assert [column[0] for column in cells] == ["PPO", "as before", "2.00", "1.0", "1.0", "1.0", "40.0"]
