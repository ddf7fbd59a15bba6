"""What can be read from the pictures of the groups: colours, numbers and labels, not how they look."""

import signal
import time
from typing import Any

import numpy as np
import pytest
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # tensorboard has no types
from test_regrouping import ROLLOUT, Scripted, make_model

from sb3_grpo import GRPO, RegroupCallback, RegroupEvent, plot_regrouping
from sb3_grpo.callbacks import describe_event
from sb3_grpo.plots import draw_kl, draw_timeline, new_figure
from sb3_grpo.regroup_plan import Merge, Split

SPLIT = RegroupEvent(1000, "split", (0, 1), 0.5, [0, 1, 0, 1])
MERGE = RegroupEvent(3000, "merge", (1, 0), 0.05, [1, 1, 1, 1])


def timeline(*args: Any) -> Axes:
    axes = new_figure(8, 4).subplots()
    draw_timeline(axes, *args)
    return axes


def colour_at(axes: Axes, cell: int, step: float) -> tuple[float, ...]:
    (image,) = axes.images
    first, last, bottom, top = image.get_extent()
    values = np.asarray(image.get_array())
    assert (bottom, top) == (len(values) - 0.5, -0.5)
    column = int((step - first) / (last - first) * values.shape[1])
    return tuple(image.to_rgba(values)[cell, column])


class TestTimeline:
    def test_shows_who_belonged_to_whom(self):
        axes = timeline([0] * 4, [SPLIT, MERGE], 5000)
        first, second = colour_at(axes, 0, 100), colour_at(axes, 1, 2000)
        assert first != second
        for step, groups in (
            (990, [0, 0, 0, 0]),
            (1010, [0, 1, 0, 1]),
            (2990, [0, 1, 0, 1]),
            (3010, [1] * 4),
            (5000, [1] * 4),
        ):
            expected = [(first, second)[group] for group in groups]
            assert [colour_at(axes, cell, step) for cell in range(4)] == expected

    def test_marks_events(self):
        axes = timeline([0] * 4, [SPLIT, MERGE], 5000)
        lines = {(line.get_xdata()[0], line.get_linestyle()) for line in axes.lines}  # type: ignore[index]  # an array
        assert lines == {(1000, "-"), (3000, ":")}

    def test_an_event_that_has_just_happened_can_be_seen(self):
        axes = timeline([0] * 4, [SPLIT], 1000)
        assert colour_at(axes, 1, 1010) != colour_at(axes, 1, 990) == colour_at(axes, 0, 1010)

    def test_of_events_at_one_time_the_last_one_counts(self):
        again = SPLIT._replace(cell_to_group=[0, 1, 2, 1])
        axes = timeline([0] * 4, [SPLIT, again], 2000)
        assert len({colour_at(axes, cell, 1500) for cell in range(4)}) == 3

    def test_names_the_groups_at_the_end(self):
        axes = timeline([0] * 4, [SPLIT], 2000)
        (right,) = axes.child_axes
        assert [label.get_text() for label in right.get_yticklabels()] == ["0", "1", "0", "1"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2", "3"]

    def test_twelve_groups_have_twelve_colours(self):
        axes = timeline(list(range(12)), [], 0)
        assert len({colour_at(axes, cell, 0) for cell in range(12)}) == 12
        # those of the first groups do not depend on how many there are
        assert colour_at(axes, 3, 0) == colour_at(timeline(list(range(4)), [], 0), 3, 0)

    def test_many_cells_and_events(self, tmp_path):
        rng, n_cells = np.random.default_rng(0), 256
        history = [
            RegroupEvent(2048 * k, "split", (0, 1), 0.5, rng.integers(256, size=n_cells).tolist()) for k in range(1, 1001)
        ]
        figure = new_figure(8, 6)
        start = time.process_time()
        draw_timeline(axes := figure.subplots(), [0] * n_cells, history, 2048 * 1001)
        figure.savefig(tmp_path / "picture.png")
        # 0.3 s; a bar for each cell and event takes minutes
        assert time.process_time() - start < 3
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == [str(cell) for cell in range(0, 256, 20)]


class TestKL:
    def draw(self, between: th.Tensor, groups: list[int]) -> Axes:
        axes = new_figure(6, 5).subplots()
        draw_kl(axes, between, groups)
        return axes

    def test_numbers(self):
        between = th.tensor([[9.0, 0.5, -0.2], [0.5, 9.0, th.nan], [-0.2, th.nan, 9.0]])
        axes = self.draw(between, [0, 1, 2])
        # nothing is below 0, and no group differs from itself
        assert [text.get_text() for text in axes.texts] == ["0", "0.5", "0", "0.5", "0", "nan", "0", "nan", "0"]

    def test_groups_that_are_gone_are_not_shown(self):
        axes = self.draw(th.arange(16.0).reshape(4, 4), [1, 3])
        assert [text.get_text() for text in axes.texts] == ["0", "7", "13", "0"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]

    @pytest.mark.parametrize("value", [th.nan, 0.0, -1.0])
    def test_one_group(self, value):
        assert [text.get_text() for text in self.draw(th.full((2, 2), value), [0]).texts] == ["0"]

    def test_many_groups_have_no_numbers(self):
        axes = self.draw(th.rand(256, 256), list(range(256)))
        assert not axes.texts
        assert len(axes.get_xticklabels()) <= 12


def steps_of_pictures(folder: Any, name: str = "timeline") -> list[int]:
    (run,) = folder.glob("GRPO_*")
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0})
    accumulator.Reload()
    tag = f"groups/figure_{name}"
    return [event.step // ROLLOUT for event in accumulator.Images(tag)] if tag in accumulator.Tags()["images"] else []


@pytest.fixture
def few_numbers(monkeypatch):
    """Nothing of a picture but that it is there: drawing takes most of the time."""
    monkeypatch.setattr("sb3_grpo.callbacks.draw_kl", lambda *_: None)
    monkeypatch.setattr("sb3_grpo.callbacks.draw_timeline", lambda *_: None)
    monkeypatch.setattr("sb3_grpo.callbacks.timeline_height", lambda _: 1)
    monkeypatch.setattr("sb3_grpo.callbacks.new_figure", lambda *_: Figure((0.2, 0.2)))


class TestWhenPicturesAreDrawn:
    """Groups are looked at before every rollout but the first."""

    def learn(self, folder: Any, n_rollouts: int, script: dict[int, Merge | Split], **kwargs: Any) -> list[int]:
        model = make_model(
            merge_kl=0.0, split_kl=None, tensorboard_log=str(folder), policy_kwargs=dict(net_arch=[4]), n_epochs=1
        )
        # no other events
        callback = Scripted({**script, 1000: Split(0, 0, [], 0.0)}, **kwargs)
        model.learn(n_rollouts * ROLLOUT, callback)
        return steps_of_pictures(folder)

    # an event that is overwritten by those after it
    SPLIT, MERGE = Split(0, 2, [2], 1.0), Merge(0, 2, 0.5, 0.0)

    def test_after_an_event_at_growing_distances(self, tmp_path, few_numbers):
        pictures = self.learn(tmp_path, 45, {10: self.SPLIT})
        assert pictures == [1, 5, 10, 14, 18, 26, 42, 45]

    def test_many_events_in_a_row(self, tmp_path, few_numbers):
        script = {rollout: (self.SPLIT, self.MERGE)[rollout % 2] for rollout in range(6, 18)}
        assert self.learn(tmp_path, 20, script) == [1, 5, 9, 13, 17, 20]

    def test_at_least_every_so_many_looks(self, tmp_path, few_numbers):
        assert self.learn(tmp_path, 12, {}, figure_freq=2) == [1, 3, 5, 7, 9, 11]

    def test_never(self, tmp_path):
        assert self.learn(tmp_path, 6, {2: self.SPLIT}, figure_freq=0) == []

    def test_the_split_is_in_the_picture(self, tmp_path):
        drawn = []

        class Watching(Scripted):
            def _log_figures(self, divergences: Any) -> None:
                super()._log_figures(divergences)
                drawn.append((self.num_timesteps, [event.timestep for event in self._grpo.regroup_history]))

        model = make_model(merge_kl=0.0, tensorboard_log=str(tmp_path))
        model.learn(5 * ROLLOUT, Watching({2: self.SPLIT, 1000: self.SPLIT}))
        # the last picture has been drawn three rollouts after the split
        assert drawn[-1] == (5 * ROLLOUT, [2 * ROLLOUT])
        assert steps_of_pictures(tmp_path, "kl") == [1, 5]


class TestPlotRegrouping:
    def test_both_pictures(self, tmp_path):
        model = make_model(regroup_warmup=100).learn(3 * ROLLOUT)
        figure = plot_regrouping(model, tmp_path / "picture.png")
        assert len(figure.axes) >= 2
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("algorithm", [PPO])
    def test_of_another_algorithm(self, algorithm):
        with pytest.raises(ValueError, match="`model` must be a GRPO model, got PPO"):
            plot_regrouping(algorithm("MlpPolicy", "CartPole-v1", device="cpu"))

    def test_of_one_head(self):
        with pytest.raises(ValueError, match="more than one head"):
            plot_regrouping(GRPO("MlpPolicy", "CartPole-v1", n_groups=1, device="cpu"))


class TestCallback:
    def test_with_another_algorithm(self):
        model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
        with pytest.raises(ValueError, match="RegroupCallback needs a GRPO model, got PPO"):
            model.learn(8, RegroupCallback())
        assert model.num_timesteps == 0

    @pytest.mark.parametrize("value", [-1, 1.5, "50", None])
    def test_bad_figure_freq(self, value):
        with pytest.raises(ValueError, match=f"`figure_freq` must be an integer of at least 0, got {value!r}"):
            RegroupCallback(figure_freq=value)

    @pytest.mark.parametrize("where", ["regroup", "reset_noise"])
    def test_an_event_is_applied_as_a_whole(self, monkeypatch, where):
        """Ctrl-C in the middle of it comes afterwards."""
        model = make_model("pendulum", use_sde=True, merge_kl=0.0)
        change = getattr(model.policy, where)

        def interrupted(*args: Any) -> None:
            change(*args)
            if model.policy.grouping.cell_to_group.tolist() != model.first_grouping and not model.regroup_history:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(model.policy, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.learn(5 * ROLLOUT, Scripted({2: Split(0, 2, [2], 1.0)}))
        assert model.num_timesteps == 2 * ROLLOUT
        (event,) = model.regroup_history
        assert event.cell_to_group == model.policy.grouping.cell_to_group.tolist() != model.first_grouping


class TestPrintedLines:
    def test_of_a_split(self):
        expected = "split of group 0 after 1000 steps: its cells differ by 0.50 nats, group 1 gets cells 1, 3"
        assert describe_event(SPLIT) == expected

    def test_of_a_merge(self):
        # estimates of small divergences can be below 0
        event = MERGE._replace(kl=-0.001)
        expected = "merge of groups 1 and 0 into 1 after 3000 steps: their policies differ by 0.00 nats only"
        assert describe_event(event) == expected

    def test_of_many_cells(self):
        event = SPLIT._replace(cell_to_group=[0, 1] * 100)
        assert describe_event(event).endswith("group 1 gets 100 of its cells")

    def test_tags_that_need_the_documentation_are_not_printed(self, capsys):
        make_model(verbose=1).learn(6 * ROLLOUT)
        printed = capsys.readouterr().out
        assert "groups/" in printed
        assert not any(name in printed for name in ("kl_within", "kl_between", "n_merges", "n_splits"))
