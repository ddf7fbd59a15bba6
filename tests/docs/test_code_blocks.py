"""Every block of Python in README and documentation runs, with short trainings."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch as th
from pages import NAMES, REPOSITORY, Block, blocks_of
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

PYTHON = {name: [b for b in blocks_of((REPOSITORY / name).read_text()) if b.language == "python"] for name in NAMES}
MAX_NOT_RUN = 1
MAX_STEPS = 512  # of a rollout, in each environment; episodes of an agent that has learnt nothing fit into it


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let each training end after one rollout, from which it learns once; the steps that were asked for."""
    asked: list[int] = []
    learn = OnPolicyAlgorithm.learn

    def learn_shortly(model: Any, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        asked.append(total_timesteps)
        model.n_epochs = 1
        model.n_steps = model.rollout_buffer.buffer_size = min(model.n_steps, MAX_STEPS)
        model.rollout_buffer.reset()
        for callback in [*args, *kwargs.values()]:
            if isinstance(callback, EvalCallback):
                callback.eval_freq = min(callback.eval_freq, model.n_steps)
        return learn(model, min(total_timesteps, model.n_steps * model.n_envs), *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "learn", learn_shortly)
    return asked


def run(page: str, blocks: list[Block]) -> dict[str, Any]:
    """
    Run blocks of code one after the other.

    :param page: where they are from; tracebacks name it, and the line
    :param blocks: the code
    :return: what they have defined
    """
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        # as many empty lines before the code as there are lines before it in the page
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)  # noqa: S102  # the project's own pages
    return names


# EnvPool makes its spaces of float32 out of bounds in float64, and Gymnasium warns of it
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
@pytest.mark.parametrize("name", [name for name, blocks in PYTHON.items() if blocks])
def test_blocks_run(name: str, short_trainings: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for block in PYTHON[name] if block.reason is None]
    if any("import envpool" in block.code for block in blocks):
        pytest.importorskip("envpool")
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    run(name, blocks)
    assert len(short_trainings) >= sum(block.code.count(".learn(") for block in blocks)


def test_hardly_any_block_is_not_run() -> None:
    reasons = [block.reason for blocks in PYTHON.values() for block in blocks if block.reason]
    assert len(reasons) <= MAX_NOT_RUN
    assert sum(map(len, PYTHON.values())) > 20


PAGE = """# Page

```python
x = 1
```

```text
not code
```

<!-- not run: needs the moon -->
```python
x = moon()
```

```python
x += y
```
"""


def test_blocks_are_found() -> None:
    assert [(block.language, block.line, block.reason) for block in blocks_of(PAGE)] == [
        ("python", 4, None),
        ("text", 8, None),
        ("python", 13, "needs the moon"),
        ("python", 17, None),
    ]


def test_blocks_share_names_and_their_errors_say_where() -> None:
    first, _, not_run, last = blocks_of(PAGE)
    assert run("page.md", [first, Block("python", "x += 1\n", 20, None)])["x"] == 2
    with pytest.raises(NameError, match="moon"):
        run("page.md", [not_run])
    with pytest.raises(NameError, match="'y'") as caught:
        run("page.md", [first, last])
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == ("page.md", last.line)


def test_trainings_are_short(short_trainings: list[int]) -> None:
    model = PPO("MlpPolicy", "CartPole-v1")
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.learn(100_000)
    assert (short_trainings, model.num_timesteps, model._n_updates) == ([100_000], MAX_STEPS, 1)
    assert not th.equal(model.policy.state_dict()["action_net.weight"], before)
