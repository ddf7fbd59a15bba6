from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_grpo.vec_env.batches import info_of, make_batch, split_final


def test_info_of_one_environment():
    infos: dict[str, Any] = {
        "step": np.array([3, 4]),  # EnvPool: no masks
        "success": np.array([1.0, 0.0]),
        "_success": np.array([True, False]),
        "inner": {"x": np.array([[1, 2], [3, 4]]), "_x": np.array([False, True])},
        "name": "all",
        "list": ["a", "b"],
        "_private": np.array([5, 6]),
    }
    rest = {"name": "all"}
    assert info_of(infos, 0, 2) == {"step": 3, "success": 1, "inner": {}, "list": "a", "_private": 5, **rest}
    last = info_of(infos, 1, 2)
    assert last["inner"]["x"].tolist() == [3, 4]
    assert "success" not in last
    infos["inner"]["x"][:] = 0
    assert last["inner"]["x"].tolist() == [3, 4]


def test_last_observations():
    infos = {"final_obs": [1, None], "_final_obs": [True, False], "final_info": {"a": [1]}, "_final_info": [True], "b": [2]}
    assert split_final(infos) == ([1, None], {"a": [1]}, {"b": [2]})
    with pytest.raises(ValueError, match=r"env must give .* infos\['final_obs'\].*got infos with \['b'\]"):
        split_final({"b": [2]})


@pytest.mark.parametrize(
    "observations", [{"a": np.arange(4).reshape(2, 2), "b": np.array([5, 6])}, [{"a": [0, 1], "b": 5}, {"a": [2, 3], "b": 6}]]
)
def test_rows_of_a_dictionary(observations):
    batch = make_batch(spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.Discrete(7)}))
    row = batch.row(observations, 1)
    assert (row["a"].tolist(), row["b"]) == ([2, 3], 6)
    assert (row["a"].dtype, row["b"].dtype) == (np.float64, np.int64)


def test_too_few_rows():
    batch = make_batch(spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="reset_some must return observations of all 3 environments, got 1"):
        batch.replace(np.zeros((3, 2)), np.array([False, True, False]), np.zeros((1, 2)))
