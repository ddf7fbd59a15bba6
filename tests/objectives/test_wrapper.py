"""The wrapper: where objectives come from, what SB3 sees of them, and what is refused."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from objectives.rewards import NAMES, Journey, make_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo import GRPO, ObjectivesWrapper, add_objectives

HALF = np.array([0.5], dtype=np.float32)


def first_step(journey: Journey, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Reward and info of a step in the wrapped environment, and its objectives by hand."""
    env = ObjectivesWrapper(journey, *args, **kwargs)
    env.reset(seed=0)
    parts = np.array([0.5, -0.25, 1 - abs(0.5 - journey.before)])
    _, reward, _, _, info = env.step(HALF)
    return reward, info, parts


def test_vector_reward_becomes_its_sum() -> None:
    reward, info, parts = first_step(Journey(), NAMES)
    np.testing.assert_allclose(info["objectives"], parts)
    assert isinstance(reward, float)
    assert reward == pytest.approx(parts.sum())


@pytest.mark.parametrize("where", ["vector", "numbers"])
def test_parts_in_info_leave_the_reward(where: str) -> None:
    reward, info, parts = first_step(Journey(where=where), NAMES, key="parts")
    np.testing.assert_allclose(info["objectives"], parts)
    assert reward == 0.5


def test_named_parts_are_taken_in_the_order_of_the_names() -> None:
    _, info, parts = first_step(Journey(where="numbers"), ["comfort", "speed"], key="parts")
    np.testing.assert_allclose(info["objectives"], parts[[2, 0]])


def test_names_are_numbers_by_default() -> None:
    assert ObjectivesWrapper(Journey()).objective_names == ["0", "1", "2"]


def test_vec_normalize_changes_the_reward_only() -> None:
    env = VecNormalize(make_env(), norm_obs=False, gamma=0.9)
    env.reset()
    for _ in range(3):
        _, rewards, _, infos = env.step(np.tile(HALF, (2, 1)))
    assert [info["objectives"][:2].tolist() for info in infos] == [[0.5, -0.25]] * 2
    assert not np.allclose(rewards, [info["objectives"].sum() for info in infos])


@pytest.mark.parametrize(
    ("names", "key", "message"),
    [
        ([], None, "at least one"),
        (["a", "a", "b"], None, "different"),
        ("abc", None, "sequence of strings"),
        ([1, 2, 3], None, "sequence of strings"),
        (["a"], "parts", "at least 2"),
    ],
)
def test_names_that_are_refused(names: Any, key: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"`names` must be .*{message}"):
        ObjectivesWrapper(Journey(), names, key)


def test_names_must_be_given_without_a_reward_space() -> None:
    with pytest.raises(ValueError, match="`names` must be given"):
        ObjectivesWrapper(Journey(where="vector"), key="parts")


def test_steps_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong length, NaN in one component, a missing entry, a name that does not exist: the error names the objective."""

    def error_of(env: ObjectivesWrapper) -> str:
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r".") as caught:
            env.step(HALF)
        return str(caught.value)

    assert "2 objectives" in error_of(ObjectivesWrapper(Journey(), ["a", "b"]))
    assert "['cost']" in error_of(ObjectivesWrapper(Journey(factors=(1.0, np.nan, 1.0)), NAMES))
    assert "'parts'" in error_of(ObjectivesWrapper(Journey(), NAMES, key="parts"))
    assert "['taste']" in error_of(ObjectivesWrapper(Journey(where="numbers"), ["speed", "taste"], key="parts"))
    plain = Journey()
    monkeypatch.setattr(plain, "step", lambda action: (plain.observe(), 1.0, False, False, {}))
    assert "the shape ()" in error_of(ObjectivesWrapper(plain, NAMES))


def test_a_reward_space_of_no_vector_names_nothing() -> None:
    env = Journey()
    env.reward_space = spaces.Box(-1, 1, (2, 2), np.float32)
    with pytest.raises(ValueError, match="`names` must be given"):
        ObjectivesWrapper(env)


class TestAddObjectives:
    def test_goes_inside_of_monitor(self) -> None:
        """Also where there are wrappers around that."""
        for env in (Monitor(Journey()), TimeLimit(Monitor(Journey()), 9)):
            added = add_objectives(env, NAMES)
            assert added is env
            assert added.get_wrapper_attr("objective_names") == NAMES
            added.reset(seed=0)
            total = 0.0
            for _ in range(5):
                _, reward, _, _, info = added.step(HALF)
                assert reward == pytest.approx(info["objectives"].sum())
                total += float(reward)
            assert info["episode"]["r"] == pytest.approx(total, abs=1e-5)

    def test_is_the_wrapper_where_there_is_no_monitor(self) -> None:
        env = add_objectives(Journey(where="numbers"), NAMES, key="parts")
        assert isinstance(env, ObjectivesWrapper)
        assert (env.objective_names, env.key) == (NAMES, "parts")

    def test_in_make_vec_env(self) -> None:
        env = make_vec_env(Journey, 2, seed=0, wrapper_class=add_objectives, wrapper_kwargs=dict(names=NAMES))
        model = GRPO("MlpPolicy", env, group_by="objectives", n_steps=32, batch_size=32, device="cpu").learn(64)
        assert [record.name for record in model.groups] == NAMES
        assert model.ep_info_buffer
        assert all(isinstance(info["r"], float) for info in model.ep_info_buffer)

    def test_a_vector_in_monitor_is_refused(self) -> None:
        with pytest.raises(ValueError, match="`env` must not be in Monitor, which knows numbers only: use add_objectives"):
            ObjectivesWrapper(Monitor(Journey()), NAMES)
        # numbers pass
        assert ObjectivesWrapper(Monitor(Journey(where="numbers")), NAMES, key="parts").objective_names == NAMES
