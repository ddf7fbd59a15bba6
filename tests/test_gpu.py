"""
What has to work on a GPU too. The same tests run on the CPU everywhere, so that they are known to work; where there is no
GPU its half is skipped.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv

from sb3_grpo import GRPO, evaluate_groups, export_pt2
from sb3_grpo.regroup_plan import Merge, Split

# SB3's advice: these networks are small
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to run .* on the GPU:UserWarning")
TASKS = "sb3_grpo/TaskCartPole-v0"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def make_model(device: str, **kwargs: Any) -> GRPO:
    """A head per task; the groups are looked at from the second rollout on, and never change."""
    groups = {"router": "one_hot", "router_kwargs": {"columns": (4, 8)}, "normalize_advantage": "group"}
    looks = {"regroup_freq": 1, "regroup_warmup": 1, "merge_kl": 0.0, "split_kl": 100.0}
    env = make_vec_env(TASKS, n_envs=4, seed=0)
    return GRPO("MlpPolicy", env, n_steps=64, n_epochs=2, device=device, **{"seed": 0, **groups, **looks, **kwargs})


def tensors(model: Any) -> dict[str, th.Tensor]:
    """Everything that the policy keeps and that training goes on with, on the CPU."""
    state = model.training_state() if isinstance(model, GRPO) else {}
    return {name: value.cpu().clone() for name, value in {**model.policy.state_dict(), **state}.items()}


@pytest.mark.parametrize("kwargs", [{}, {"router": "random", "router_kwargs": None, "normalize_advantage": True}])
def test_trains_where_it_is_told(device, kwargs):
    model = make_model(device, **kwargs)
    before = tensors(model)
    model.learn(3 * 256)
    assert {value.device.type for value in model.policy.parameters()} == {device}
    assert {value.device.type for value in model.policy.buffers()} == {device}
    assert {value.device.type for value in model.training_state().values()} == {device}
    after = tensors(model)
    changed = [name for name, _ in model.policy.named_parameters() if not th.equal(after[name], before[name])]
    # the network that all groups share, and their heads
    assert {name.split(".")[0] for name in changed} == {"mlp_extractor", "action_net", "value_net"}
    assert all(value.isfinite().all() for value in after.values())
    # they were trained with what happened
    assert sum(record.steps for record in model.groups) == 256
    assert all(math.isfinite(record.score) for record in model.groups if record.steps)


def test_images(device):
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
    model = GRPO("CnnPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0, device=device)
    before = tensors(model)
    model.learn(64)
    assert {value.device.type for value in model.policy.parameters()} == {device}
    after = tensors(model)
    assert all(not th.equal(after[name], before[name]) for name in after if name.startswith("features_extractor.cnn"))


def test_one_group_learns_what_ppo_learns(device):
    weights = []
    algorithm: Any
    kwargs: dict[str, Any]
    for algorithm, kwargs in ((PPO, {}), (GRPO, {"n_groups": 1})):
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
        model = algorithm("MlpPolicy", env, n_steps=64, n_epochs=2, seed=0, device=device, **kwargs)
        weights.append(tensors(model.learn(512)))
    ppo, grpo = weights
    for name, value in ppo.items():
        # to the last bit on the CPU, where tests/test_parity.py has more of it
        th.testing.assert_close(grpo[name], value, atol=0 if device == "cpu" else 1e-5, rtol=0)


def test_the_same_seed_gives_the_same_weights(device):
    first, again, other = (make_model(device, seed=seed).learn(3 * 256) for seed in (0, 0, 1))
    weights, repeated = tensors(first), tensors(again)
    for name, value in weights.items():
        # NaN stands for what could not be measured
        assert th.equal(value.nan_to_num(7.0), repeated[name].nan_to_num(7.0)), name
    assert not th.equal(weights["action_net.weight"], tensors(other)["action_net.weight"])


def test_saved_here_loaded_on_the_cpu_and_back(device, tmp_path: Path):
    model = make_model(device).learn(2 * 256)
    model.save(tmp_path / "model")
    obs: Any = make_vec_env(TASKS, n_envs=4, seed=1).reset()
    weights, actions = tensors(model), model.predict(obs, deterministic=True)[0]
    for where in ("cpu", device):
        loaded = GRPO.load(tmp_path / "model", make_vec_env(TASKS, n_envs=4, seed=0), device=where)
        assert {value.device.type for value in loaded.policy.parameters()} == {where}
        moments = [value for state in loaded.policy.optimizer.state.values() for value in state.values()]
        assert len(moments) > 0
        for name, value in tensors(loaded).items():
            assert th.equal(value.nan_to_num(7.0), weights[name].nan_to_num(7.0)), name
        assert (loaded.predict(obs, deterministic=True)[0] == actions).all()
        loaded.learn(2 * 256)
        assert not th.equal(tensors(loaded)["action_net.weight"], weights["action_net.weight"])


def test_groups_merge_and_split(device):
    model: Any = make_model(device, max_groups=5).learn(256)
    model.policy.regroup(Merge(0, 1, 0.5, 0.0))
    assert model.policy.grouping.cell_to_group.tolist() == [0, 0, 2, 3]
    model.learn(256, reset_num_timesteps=False)
    assert [record.cells for record in model.groups] == [[0, 1], [2], [3]]
    model.policy.regroup(Split(0, 4, [1], 1.0))
    assert model.policy.grouping.cell_to_group.tolist() == [0, 4, 2, 3]
    model.learn(256, reset_num_timesteps=False)
    assert [record.cells for record in model.groups] == [[0], [2], [3], [1]]
    # they began alike and have learnt different things since
    assert model.policy.grouping.heads == [0, 2, 3, 4]
    heads = model.policy.action_net.weight.reshape(4, 2, -1)
    assert not th.equal(heads[0], heads[3])


def test_regrouping_by_itself(device):
    model = make_model(device, merge_kl=50.0).learn(4 * 256)
    # everything is alike
    assert [event.kind for event in model.regroup_history] == ["merge"] * 3
    assert model.policy.grouping.cell_to_group.tolist() == [0, 0, 0, 0]


def test_evaluates_by_task(device):
    result = evaluate_groups(make_model(device).learn(256), make_vec_env(TASKS), n_eval_episodes=4)
    assert result.keys() == {0, 1, 2, 3}
    assert all(1 <= evaluation.mean <= 500 for evaluation in result.values())


@pytest.mark.gpu  # tests/test_update.py has it for the CPU
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kwargs", [{}, {"target_kl": 1e-3, "learning_rate": 1e-2}], ids=["all epochs", "stopped early"])
def test_compiled_on_a_gpu_is_eager_within_rounding(kwargs):
    """Also where steps are refused, which is found out some minibatches later."""
    models = [make_model("cuda", batch_size=32, compile=compile_, **kwargs).learn(3 * 256) for compile_ in (False, True)]
    eager, compiled = models
    assert eager.logger.name_to_value["train/n_updates"] == compiled.logger.name_to_value["train/n_updates"]
    weights = tensors(eager)
    for name, value in tensors(compiled).items():
        th.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-3, equal_nan=True, msg=name)


def test_exported_policy_acts_on_the_cpu(device, tmp_path):
    model = make_model(device).learn(256)
    # compared with predict, which acts where the policy is
    export_pt2(model, tmp_path / "file")
    program = th.export.load(tmp_path / "file")
    assert {tensor.device.type for tensor in program.state_dict.values()} == {"cpu"}
    assert {parameter.device.type for parameter in model.policy.parameters()} == {device}
