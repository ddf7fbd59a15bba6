"""Which arguments RL Zoo's scripts get."""

import os

import pytest
from zoo.runs import TASKS

from sb3_grpo.zoo.command_line import CONFIG, REWRITES, name_and_value, parse_training


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:1", ("a", 1)),
        ("a:0.5", ("a", 0.5)),
        ("a:one", ("a", "one")),
        ("a:'one'", ("a", "one")),
        ("a:b:c", ("a", "b:c")),
    ],
)
def test_fixed_values_are_written_as_trials_print_them(text, expected):
    assert name_and_value(text) == expected


class TestTraining:
    def test_own_options_are_not_passed_on(self):
        fixed = ("--fix", "n_epochs:10", "groups:one")
        options, rest = parse_training(["--objective", "worst", "--algo", "a2c", *fixed, "-n", "5"])
        assert (options.objective, options.fix) == ("worst", [("n_epochs", 10), ("groups", "one")])
        assert rest == ["--algo", "a2c", "-n", "5"]

    def test_defaults(self):
        options, rest = parse_training([])
        assert (options.objective, options.fix, rest) == ("mean", [], [])

    @pytest.mark.parametrize("algo", [["--algo", "grpo"], ["--algo=grpo"]])
    def test_hyperparameters_of_grpo_are_found_without_a_path(self, algo):
        # RL Zoo takes the last: the user's comes after that of this package
        given = [*algo, "--conf-file", "mine.yml"]
        assert parse_training(given)[1] == ["--conf-file", CONFIG, *given]


@pytest.mark.parametrize("script", ["all_plots", "plot_train"])
@pytest.mark.parametrize("option", ["-e", "--env"])
def test_plots_look_for_folders(script, option):
    argv = REWRITES[script](["-a", "grpo", option, TASKS, "CartPole-v1", "-f", "logs"])
    assert argv == ["-a", "grpo", "-f", "logs", "-e", TASKS.replace("/", "-"), "CartPole-v1"]
    assert REWRITES[script](["-a", "grpo"]) == ["-a", "grpo"]


@pytest.mark.parametrize("option", ["-o", "--output-folder", "--output"])
def test_videos_are_joined_in_an_absolute_folder(option):
    argv = REWRITES["record_training"](["--algo", "grpo", option, "videos"])
    assert argv == ["--algo", "grpo", "-o", os.path.abspath("videos")]
    assert REWRITES["record_training"](["--algo", "grpo"]) == ["--algo", "grpo"]
