"""The wrapper: where objectives come from, what SB3 sees of them, and what is refused."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from objectives.rewards import NAMES, Journey, make_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo import ObjectivesWrapper

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
