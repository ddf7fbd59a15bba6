"""Test that PPO and GRPO write the same TensorBoard logs, and that TensorBoard shows them."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tensorboard import program  # type: ignore[import-untyped]  # tensorboard has no types
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # the same

from benchmarks.lib.zoo import hyperparams
from benchmarks.sweeps.head_to_head import run_plain
from sb3_grpo.tensorboard import LAYOUT


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs, as the head to head makes them."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        # RL Zoo changes the entry that a run puts there: the tests after this one get their own back
        patch.setitem(hyperparams, "CartPole-v1", {})
        for algorithm in ("ppo", "grpo"):
            run_plain("CartPole-v1", algorithm, seed=0, total_timesteps=2048, logs=str(folder))
    return folder


def read_events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


class TestEventFiles:
    def test_same_tags_and_default_grpo_is_ppo(self, logs: Path) -> None:
        ppo, grpo = (read_events(logs / "CartPole-v1" / f"{name}_0") for name in ("PPO", "GRPO"))
        tags = set(ppo.Tags()["scalars"])
        assert {"rollout/ep_rew_mean", "eval/mean_reward", "train/loss"} <= tags
        assert {tag for tag in grpo.Tags()["scalars"] if not tag.startswith("groups/")} == tags
        for tag in ("rollout/ep_rew_mean", "eval/mean_reward"):
            assert [(e.step, e.value) for e in ppo.Scalars(tag)] == [(e.step, e.value) for e in grpo.Scalars(tag)]

    def test_layout_finds_tags(self, logs: Path) -> None:
        """But for those that take several tasks, or more steps."""
        tags = read_events(logs / "CartPole-v1" / "GRPO_0").Tags()["scalars"]
        charts = [pattern for charts in LAYOUT.values() for _, patterns in charts.values() for pattern in patterns]
        without = {pattern for pattern in charts if not any(re.fullmatch(pattern, tag) for tag in tags)}
        tasks = {"eval/task_.+", "eval/worst_reward", "tasks/probability_.+", "tasks/score_.+"}
        assert without == {*tasks, "groups/kl_within", "groups/kl_between"}

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard brings along
    def test_server_shows_them(self, logs: Path) -> None:
        """The answers that TensorBoard's page is made of."""
        server = program.TensorBoard()
        server.configure(argv=[None, "--logdir", str(logs), "--port", "0", "--host", "127.0.0.1", "--load_fast", "false"])
        address = server.launch()

        def ask(path: str, body: dict[str, Any] | None = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"{address}data/plugin/{path}", data, {"Content-Type": "application/json"})  # noqa: S310 (our own server)
            with urllib.request.urlopen(request) as answer:  # noqa: S310 (the same)
                return json.loads(answer.read())

        runs = {"CartPole-v1/PPO_0", "CartPole-v1/GRPO_0"}
        tags = ask("scalars/tags")
        assert runs <= set(tags)
        assert all("eval/mean_reward" in tags[run] for run in runs)
        layout = ask("custom_scalars/layout")
        assert [category["title"] for category in layout["category"]] == list(LAYOUT)
        experiment = ask("hparams/experiment", {"experimentName": ""})
        names = {parameter["name"] for parameter in experiment["hparamInfos"]}
        assert {"algorithm", "n_steps", "gamma"} <= names
