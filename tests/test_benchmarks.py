"""What the benchmarks are made of: sweeps that resume, statistics, event files, the page of results."""

import importlib
import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import balancing_rules
import gymnasium as gym
import minigrid_tasks
import numpy as np
import pytest
import report
import torch as th
from balance import head_per_task
from common import parse_parts, read_rows, run_part, sweep
from head_to_head import VARIED, run_plain
from measures import aggregate_iqm, iqm, iqm_interval, probability_of_improvement, ratio_of_iqms
from minigrid.core.world_object import Ball, Key
from rich.table import Table
from scipy import stats
from stable_baselines3 import PPO
from tensorboard import program  # type: ignore[import-untyped]  # tensorboard has no types
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # the same

from sb3_grpo import GRPO, zoo_configs
from sb3_grpo.tensorboard import LAYOUT


def square(x: int, seed: int, coef: float = 1.0) -> dict[str, Any]:
    return {"square": x * x}


def on_node(seed: int) -> dict[str, Any]:
    time.sleep(1)
    return {"node": importlib.import_module("ray").get_runtime_context().get_node_id()}


def fail(x: int, seed: int) -> dict[str, Any]:
    raise RuntimeError(f"run {x}")


class TestSweep:
    RUNS = tuple({"x": x, "seed": 0} for x in range(3))

    def test_rows_are_kept_and_not_run_again(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        rows = sweep(square, self.RUNS[:2], path, jobs=1)
        assert [row["result"]["square"] for row in rows] == [0, 1]
        with pytest.raises(RuntimeError, match="run 2"):
            sweep(fail, self.RUNS, path, jobs=1)
        assert [row["result"]["square"] for row in sweep(square, self.RUNS, path, jobs=1)] == [0, 1, 4]
        assert [row["run"] for row in read_rows(path)] == list(self.RUNS)
        assert {"seconds", "versions", "commit"} <= set(read_rows(path)[0])

    def test_part_of_the_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        runs: list[dict[str, Any]] = [{"x": x, "seed": seed} for x in (1, 2) for seed in (0, 1)]

        def run(*only: str) -> list[dict[str, Any]]:
            monkeypatch.setattr(sys, "argv", ["sweep.py", "--smoke", str(tmp_path), "--jobs", "1", "--only", *only])
            return [row["run"] for row in run_part(square, runs, "rows", parse_parts(None, ["rows"]))]

        assert run("x=2", "seed=1") == [{"x": 2, "seed": 1}]
        # a smoke run is one of the first seed, and of each kind
        assert run() == [{"x": 1, "seed": 0}, {"x": 2, "seed": 0}]
        runs = [{**given, "coef": coef} for given in runs for coef in (0.5, 0.0)]
        assert run() == [{"x": 1, "seed": 0, "coef": 0.5}, {"x": 2, "seed": 0, "coef": 0.5}]
        with pytest.raises(ValueError, match=r"`--only` must leave some runs of rows, got .*3"):
            run("x=3")
        with pytest.raises(SystemExit):
            run("x")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two Ray nodes with one CPU each, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # the nodes know the benchmarks, but not the tests
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_sweep_on_two_ray_nodes(two_nodes: Any, tmp_path: Path) -> None:
    runs = [dict(seed=seed) for seed in range(6)]
    rows = sweep(on_node, runs, tmp_path / "rows.jsonl", ray=True)
    assert [row["run"] for row in rows] == runs
    assert len({row["result"]["node"] for row in rows}) == 2
    with pytest.raises(two_nodes.exceptions.RayTaskError, match="run 7"):
        sweep(fail, [dict(x=7, seed=0)], tmp_path / "other.jsonl", ray=True)


def cosine(left: Sequence[th.Tensor], right: Sequence[th.Tensor]) -> float:
    x, y = (th.cat([gradient.flatten() for gradient in gradients]) for gradients in (left, right))
    return float(th.nn.functional.cosine_similarity(x, y, dim=0))


class TestBalancingRules:
    @pytest.fixture
    def train(self, task_cartpole: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A function that trains for one rollout, and returns it with how its groups compared."""

        def train(rule: str) -> Any:
            algorithm, kwargs = balancing_rules.RULES[rule]
            kwargs = {**head_per_task(task_cartpole), "compile": False, "n_steps": 64, "seed": 0, **kwargs}
            model = algorithm("MlpPolicy", task_cartpole, **kwargs)
            compare, found = model._compare_groups, []

            def compare_and_keep() -> Any:
                found.append(compare())
                return found[0]

            monkeypatch.setattr(model, "_compare_groups", compare_and_keep)
            model.learn(1)
            return found[0]

        return train

    def test_softmax_prefers_groups_that_are_behind(self, train: Any) -> None:
        rollout, balance = train("softmax")
        shares = balance.steps / balance.steps.sum()
        assert float(shares @ balance.weights) == pytest.approx(1)
        # the ratio of two weights, by hand; all rewards are 1, so that scores are returns
        behind = float(balance.scores[1] - balance.scores[0]) / float(rollout.returns.std(correction=0))
        assert float(balance.weights[0] / balance.weights[1]) == pytest.approx(np.exp(behind), rel=1e-5)
        assert set(rollout.weights.tolist()) == set(balance.weights.astype(np.float32).tolist())

    def test_no_loss_grows_with_a_step_of_upgrad(self, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        descend = balancing_rules.UPGradUpdate._descend
        cosines: list[float] = []
        cosines_of_mean: list[float] = []

        def check(update: balancing_rules.UPGradUpdate, losses: list[th.Tensor]) -> None:
            rows = [th.autograd.grad(loss, update.shared, retain_graph=True) for loss in losses]
            mean = [th.stack(gradients).mean(dim=0) for gradients in zip(*rows, strict=True)]
            descend(update, losses)
            step = [parameter.grad for parameter in update.shared if parameter.grad is not None]
            cosines.extend(cosine(row, step) for row in rows)
            cosines_of_mean.extend(cosine(row, mean) for row in rows)

        monkeypatch.setattr(balancing_rules.UPGradUpdate, "_descend", check)
        train("UPGrad")
        assert min(cosines) > -0.01
        # the negative control: the mean of the gradients is against some loss
        assert min(cosines_of_mean) < -0.1


class TestMiniGrid:
    """Three tasks with the networks of the protocol."""

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> PPO:
        env = minigrid_tasks.make_env(list(minigrid_tasks.TASKS), seed=0)
        given = minigrid_tasks.METHODS[request.param]
        algorithm = GRPO if "router" in given else PPO
        return algorithm("MultiInputPolicy", env, seed=0, device="cpu", **given)

    def observe(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        views = np.random.default_rng(0).integers(0, 11, (1, 3, 7, 7)).astype(np.float32)
        return {"view": views.repeat(len(tasks), axis=0), "task": np.array(tasks)}

    def features(self, model: PPO) -> tuple[th.Tensor, th.Tensor]:
        """Of the actor and of the critic, for one view in all tasks."""
        obs, _ = model.policy.obs_to_tensor(self.observe([0, 1, 2]))
        with th.no_grad():
            features = model.policy.extract_features(obs)
        assert isinstance(features, tuple)
        return features

    @pytest.mark.parametrize("name", minigrid_tasks.TASKS)
    def test_remembered_views_are_those_drawn_anew(self, name: str) -> None:
        plain, other = gym.make(f"minigrid:{name}"), minigrid_tasks.remember_views(gym.make(f"minigrid:{name}"))
        world: Any = other.unwrapped
        draw = mock.Mock(side_effect=world.gen_obs_grid)
        world.gen_obs_grid = draw
        rng = np.random.default_rng(0)
        ended = True
        for step in range(2000):
            if ended:
                carried = [None, Key("grey"), Ball("green")][rng.integers(3)]
                for env in (plain, other):
                    env.reset(seed=step)
                    cast(Any, env.unwrapped).carrying = deepcopy(carried)
            # turns, walks, and opens doors
            action = rng.choice([0, 1, 2, 5], p=[0.2, 0.2, 0.5, 0.1])
            (obs, *outcome, _), (remembered, *same, _) = (env.step(action) for env in (plain, other))
            assert outcome == same
            np.testing.assert_array_equal(obs["image"], remembered["image"])
            remembered["image"][:] = 255  # what is returned is the caller's
            ended = any(outcome[1:])
        assert draw.call_count < 1000

    @pytest.mark.parametrize("model", ["multi-head PPO"], indirect=True)
    def test_hidden_layer_is_a_tasks_own(self, model: PPO) -> None:
        before = self.features(model)
        own = slice(minigrid_tasks.HIDDEN, 2 * minigrid_tasks.HIDDEN)
        for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
            assert isinstance(extractor, minigrid_tasks.HiddenPerTask)
            with th.no_grad():
                extractor.hidden.weight[own] += 1.0
        for features, changed in zip(before, self.features(model), strict=True):
            assert (features != changed).any(dim=1).tolist() == [False, True, False]
            assert not (features[0] * features[1]).any()

    @pytest.mark.parametrize(("model", "shown"), [("GRPO", False), ("PPO", True)], indirect=["model"])
    def test_what_is_shared(self, model: PPO, shown: bool) -> None:
        for features in self.features(model):
            assert th.equal(features[0], features[1]) is not shown

    @pytest.mark.parametrize("model", ["PPO", "multi-head PPO", "GRPO"], indirect=True)
    def test_repeated_views_are_looked_at_once(self, model: PPO) -> None:
        rng = np.random.default_rng(1)
        views, which, tasks = rng.integers(0, 11, (4, 3, 7, 7)), rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        obs, _ = model.policy.obs_to_tensor({"view": views[which].astype(np.float32), "task": tasks})
        assert isinstance(obs, dict)
        one_by_one = [{key: values[step : step + 1] for key, values in obs.items()} for step in range(30)]
        looked_at: list[int] = []
        extractor = model.policy.pi_features_extractor
        assert isinstance(extractor, minigrid_tasks.ViewExtractor)
        with th.no_grad():
            expected = th.cat([model.policy.extract_features(alone)[0] for alone in one_by_one])
            extractor.cnn.register_forward_hook(lambda *call: looked_at.append(len(call[2])))
            th.testing.assert_close(model.policy.extract_features(obs)[0], expected, atol=1e-5, rtol=0)
        assert looked_at == [len(set(zip(which, tasks, strict=True) if extractor.n_tasks else which))]

    @pytest.mark.parametrize("model", ["PPO", "multi-head PPO", "GRPO"], indirect=True)
    def test_features_are_remembered_until_the_weights_change(self, model: PPO) -> None:
        extractor = model.policy.pi_features_extractor
        assert isinstance(extractor, minigrid_tasks.ViewExtractor)
        looked_at: list[int] = []
        extractor.cnn.register_forward_hook(lambda *call: looked_at.append(len(call[2])))
        for n_updates in range(2):
            model.policy.set_training_mode(True)
            expected = self.features(model)[0]  # nothing is remembered in an update
            model.policy.set_training_mode(False)
            for _ in range(2):
                th.testing.assert_close(self.features(model)[0], expected, atol=1e-6, rtol=0)
            # what the update and the first step of the rollout look at; views differ by the task where it is shown
            assert looked_at == [3 if extractor.n_tasks else 1] * 2 * (n_updates + 1)
            with th.no_grad():
                extractor.hidden.weight += 0.1

    # the protocol's minibatches do not divide its rollouts
    @pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 768")
    def test_scores_are_shares_of_what_can_be_achieved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        returned = {task: SimpleNamespace(mean=best / 2) for task, best in enumerate(minigrid_tasks.TASKS.values())}
        monkeypatch.setattr(minigrid_tasks, "evaluate_groups", lambda *_, **__: returned)
        monkeypatch.setattr(PPO, "learn", lambda self, *_, **__: self)
        assert minigrid_tasks.run("mt3", "PPO", seed=0, n_evaluations=2)["returns"] == [[0.5, 0.5, 0.5]] * 2

    def test_table_has_half_way_end_and_second_half(self) -> None:
        result = {"returns": [[0.9, 0.9, 0.9], [0.0, 0.2, 0.4], [0.5, 0.1, 0.6], [0.3, 0.6, 0.9]]}
        table = minigrid_tasks.scores_table([{"run": {"method": "PPO"}, "result": result}], "mt3")
        cells = [str(next(iter(column.cells))) for column in table.columns]
        # of the last two evaluations task by task: 0.4, 0.35 and 0.75
        assert cells == ["PPO", "1", "0.00", "0.30", "0.35", "0.20", "0.60", "0.50", "0.30", "0.60", "0.90"]


class TestMeasures:
    SAMPLE = (3.0, 1.0, 100.0, 2.0, -50.0, 4.0, 5.0, 6.0)

    def test_iqm_is_the_mean_of_the_middle_half(self) -> None:
        assert iqm(self.SAMPLE) == np.mean([2, 3, 4, 5])
        low, high = iqm_interval(self.SAMPLE)
        assert low < iqm(self.SAMPLE) < high

    def test_one_seed_has_no_interval(self) -> None:
        assert np.isnan(iqm_interval([3.0])).all()
        assert np.isnan(probability_of_improvement([np.ones(1)], [np.ones(4)])[1]).all()

    def test_interval_covers_the_mean_of_normal_samples(self) -> None:
        """Of samples whose interquartile mean is 0, about 95 % of the intervals contain it, for 10 seeds a little less."""
        rng = np.random.default_rng(0)
        intervals = [iqm_interval(rng.normal(size=10)) for _ in range(100)]
        assert 80 <= sum(low <= 0 <= high for low, high in intervals) <= 99

    def test_aggregate_counts_environments_the_same(self) -> None:
        few, many = np.array([0.0, 1.0]), np.repeat([0.0, 1.0], 10)
        assert aggregate_iqm([few, many])[0] == pytest.approx(0.5)
        # with equally many runs it is the interquartile mean of all
        x, y = np.array(self.SAMPLE), np.array(self.SAMPLE) + 1
        assert aggregate_iqm([x, y])[0] == pytest.approx(iqm([*x, *y]))

    def test_probability_is_that_of_mann_whitney(self) -> None:
        rng = np.random.default_rng(1)
        x, y = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 6).astype(float)
        expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        value, (low, high) = probability_of_improvement([x], [y])
        assert value == pytest.approx(expected)
        assert low <= value <= high

    @pytest.mark.parametrize(("shift", "expected"), [(10.0, 1.0), (0.0, 0.5), (-10.0, 0.0)])
    def test_probability_of_known_cases(self, shift: float, expected: float) -> None:
        x, y = np.arange(5.0), np.arange(4.0)
        value, (low, high) = probability_of_improvement([x + shift, y + shift], [x, y])
        assert value == pytest.approx(expected)
        assert (low < value < high) == (shift == 0)

    def test_ratio(self) -> None:
        values = [2.0, 4.0, 6.0, 8.0]
        assert ratio_of_iqms(values, values, zero=0) == (1.0, (1.0, 1.0))
        value, (low, high) = ratio_of_iqms([2 * x + 1 for x in values], [x + 1 for x in values], zero=1)
        assert value == low == high == 2


class TestReport:
    @pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.stem)
    def test_page_says_what_the_rows_say(self, page: Path) -> None:
        assert report.fill(page.read_text(), report.RESULTS) == page.read_text()

    def test_tables_become_markdown(self) -> None:
        table = Table("a", "b", title="not shown")
        table.add_row("1", "2 [1, 3]")
        assert report.to_markdown(table) == "| a | b |\n| --- | --- |\n| 1 | 2 [1, 3] |\n"

    def test_old_tables_are_replaced(self, tmp_path: Path) -> None:
        rows = [
            {
                "run": {"problem": VARIED[0], "merge_kl": 0.1, "split_kl": 0.3, "seed": s},
                "result": {"ari": a, "cell_to_group": g, "worst": 5, "mean": 7, "events": [[9, "split", 0, 1, 0.5]]},
            }
            for s, a, g in ((0, 1.0, [0, 1]), (1, 0.0, [0, 0]))
        ]
        rows.append({"run": {**rows[0]["run"], "problem": VARIED[1]}, "result": {**rows[0]["result"], "events": []}})
        (tmp_path / "head_to_head_thresholds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = "before\n<!-- table: thresholds -->\nstale\n<!-- end -->\nafter\n"
        filled = report.fill(page, tmp_path)
        assert f"| {VARIED[0]} | 0.1 | 0.3 | 2 | 2 | 1 | 1 to 2 | 5 [5, 5] | 7 [7, 7] |" in filled
        assert f"| {VARIED[1]} | 0.1 | 0.3 | 1 | 0 | 1 | 2 |" in filled
        assert "stale" not in filled
        assert filled.startswith("before\n<!-- table: thresholds -->\n")
        assert filled.endswith("<!-- end -->\nafter\n")
        assert report.fill(filled, tmp_path) == filled

    def test_comparison(self, tmp_path: Path) -> None:
        """A line for each figure that has rows, by hand."""

        def write(name: str, rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            lines = [json.dumps({"run": {**run, "seed": 0}, "result": result}) for run, result in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

        assert list(report.comparison_lines(tmp_path)) == []
        returns = {"PPO": [[9, 9], [1, 3]], "GRPO": [[9, 9], [500, 400]]}
        write("balance_drawn", [({"method": name}, {"returns": given}) for name, given in returns.items()])
        ranges = {("PPO", 0.1): 400, ("PPO", 0.2): 399, ("GRPO", 0.1): 500, ("GRPO", 0.2): 450}
        write(
            "head_to_head_clip_range",
            [({"algorithm": a, "clip_range": c}, {"returns": [worst, 500]}) for (a, c), worst in ranges.items()],
        )
        lines = {(line, measured): figures for line, measured, *figures in report.comparison_lines(tmp_path)}
        assert [figures for (line, _), figures in lines.items() if line == "optimisation target"] == [
            ["2", "450"],
            ["1", "400"],
        ]
        assert [figures for (line, _), figures in lines.items() if line == "stability"] == [["1 of 2", "2 of 2"]]
        assert [figures for (line, _), figures in lines.items() if line == "suitable problems"] == [["0.50", "1.00"]]

    def test_one_task(self, tmp_path: Path) -> None:
        """Ratio and probability by hand; a seed that one algorithm lacks is left out."""
        returns = {("ppo", 0): 20, ("ppo", 1): 30, ("ppo", 2): 99, ("grpo", 0): 30, ("grpo", 1): 40}
        rows = [
            {
                "run": {"env_id": "Pendulum-v1", "algorithm": algorithm, "seed": seed},
                "result": {"steps": [1, 2], "returns": [10, end], **({"events": []} if algorithm == "grpo" else {})},
            }
            for (algorithm, seed), end in returns.items()
        ]
        (tmp_path / "head_to_head_plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        random = {"run": {"env_id": "Pendulum-v1", "seed": 0}, "result": {"return": 10}}
        (tmp_path / "head_to_head_random.jsonl").write_text(json.dumps(random))
        table = report.Plain(tmp_path).table()
        cells = {str(column.header): str(next(iter(column.cells))) for column in table.columns}
        assert cells["seeds"] == "2"
        assert cells["PPO, end"].startswith("25 [")
        # (30 + 40 - 2 * 10) / (20 + 30 - 2 * 10), and of four pairs one is equal
        assert cells["ratio, end"].startswith("1.67 [")
        assert cells["P(GRPO better), end"].startswith("0.88 [")

    def test_unknown_table(self) -> None:
        with pytest.raises(KeyError, match="nothing"):
            report.fill("<!-- table: nothing -->\n<!-- end -->\n", report.RESULTS)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs, as the head to head makes them."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        # RL Zoo changes the entry that a run puts there: the tests after this one get their own back
        patch.setitem(zoo_configs.hyperparams, "CartPole-v1", {})
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
        tasks = {"eval/task_.+", "eval/worst_reward", r"tasks/probability_\d+", r"tasks/score_\d+"}
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
