"""What GRPO's trials are suggested."""

import optuna
from rl_zoo3 import hyperparams_opt, utils
from stable_baselines3 import PPO

from sb3_grpo import GRPO
from sb3_grpo.zoo.search_space import convert_group_params


class TestSearchSpace:
    def test_converter_gives_what_the_sampler_gave(self, registered):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            trial = study.ask()
            sampled = hyperparams_opt.HYPERPARAMS_SAMPLER["grpo"](trial, 1, 1, {})
            assert hyperparams_opt.HYPERPARAMS_CONVERTER["grpo"](trial.params) == sampled
            assert sampled["merge_kl"] < sampled["split_kl"]
            groups = convert_group_params(trial.params)
            assert groups.items() <= sampled.items()
            assert GRPO("MlpPolicy", "CartPole-v1", **groups).group_coef == sampled["group_coef"]

    def test_contains_that_of_ppo(self, registered):
        trials = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask() for _ in range(2)]
        for trial, name in zip(trials, ("ppo", "grpo"), strict=True):
            hyperparams_opt.HYPERPARAMS_SAMPLER[name](trial, 1, 1, {})
        ppo, grpo = (set(trial.params) for trial in trials)
        assert grpo - ppo == {"groups", "group_coef", "normalize_advantage", "split_kl", "merge_to_split"}
        assert ppo <= grpo


def test_registering(registered):
    assert utils.ALGOS["grpo"] is GRPO
    assert utils.ALGOS["ppo"] is PPO
