"""Build the models that ``balance.py`` compares."""

from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.tasks import SETTINGS, head_per_task
from benchmarks.lib.variants import StepSizeGRPO, TaskNormalisedBuffer, TrustRegionGRPO
from sb3_grpo import GRPO, TaskSamplingCallback

LAMBDAS = (0.005, 0.02, 0.1, 0.5)
# settings of the tables; "wide" is a part of balancing_rules.py
RESULT_SETTINGS = tuple(setting for setting in SETTINGS if setting != "wide")

# class, whether lambda is in the model, and whether it is in the sampling of tasks
LEVERS: dict[str, tuple[type[GRPO], bool, bool]] = {
    "loss": (GRPO, True, False),
    "trust region": (TrustRegionGRPO, True, False),
    "step size": (StepSizeGRPO, True, False),
    "data": (GRPO, False, True),
    "loss and data": (GRPO, True, True),
}
# the settings in which a method is compared: task sampling where environments draw their tasks, normalised rewards where they
# differ in scale; methods without an effect on CartPole are left out on LunarLander, whose runs are long
DRAWN = ("drawn", "drawn_large", "scaled", "lander")
COMPLETE = ("drawn", "scaled", "lander", "rare")
METHODS: dict[str, tuple[str, ...]] = {
    "PPO": RESULT_SETTINGS,
    "PPO, task sampling": DRAWN,
    "PPO, advantages normalised by task": COMPLETE,
    "PPO, rewards normalised": ("scaled", "lander_scaled"),
    "GRPO": RESULT_SETTINGS,
    "GRPO, no balance": COMPLETE,
    "GRPO, task sampling": ("drawn", "scaled"),
}


def make_model(method: str, group_coef: float | None, env: VecEnv, **kwargs: Any) -> tuple[PPO, list[Any]]:
    """
    Return the model of a method, and the callbacks of its training.

    :param method: a name of :data:`METHODS` or of :data:`LEVERS`
    :param group_coef: lambda of a lever; ``None``: the method's own
    :param env: training environments
    :param kwargs: further arguments of PPO
    """
    if method in LEVERS:
        assert group_coef is not None
        return make_lever(method, group_coef, env, **kwargs)
    groups = head_per_task(env)
    callbacks: list[Any] = [TaskSamplingCallback()] if "sampling" in method else []
    if method.startswith("PPO"):
        if "by task" in method:
            kwargs.update(rollout_buffer_class=TaskNormalisedBuffer, normalize_advantage=False)
        if "rewards" in method:
            env = VecNormalize(env, norm_obs=False, gamma=kwargs.get("gamma", 0.99))
        return PPO("MlpPolicy", env, **kwargs), callbacks
    if "no balance" in method:
        groups["group_coef"] = 0.0
    return GRPO("MlpPolicy", env, **groups, **kwargs), callbacks


def make_lever(method: str, group_coef: float, env: VecEnv, **kwargs: Any) -> tuple[GRPO, list[Any]]:
    """
    Return a model whose groups stay as they are, and the callbacks of its training.

    :param method: a name of :data:`LEVERS`
    :param group_coef: lambda
    :param env: training environments
    :param kwargs: further arguments of PPO
    """
    algorithm, in_loss, in_data = LEVERS[method]
    groups = {**head_per_task(env), **FIXED_GROUPS}
    if method == "step size":
        # ScaledHeads changes the parameters between the steps of the update, which a compiled update does not allow
        groups["compile"] = False
    callbacks = [TaskSamplingCallback(group_coef)] if in_data else []
    return algorithm("MlpPolicy", env, **groups, **kwargs, group_coef=group_coef if in_loss else 0.0), callbacks
