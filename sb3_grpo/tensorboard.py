"""Write TensorBoard's pages HPARAMS (hyper-parameters) and CUSTOM SCALARS (charts of several curves)."""

import inspect
import warnings
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule

# CUSTOM SCALARS: category -> chart -> kind of chart and regular expressions of its tags
LAYOUT: dict[str, dict[str, list[Any]]] = {
    "Returns": {
        "in training": ["Multiline", ["rollout/ep_rew_mean"]],
        "in evaluation": ["Multiline", ["eval/mean_reward", "eval/worst_reward"]],
        "by task": ["Multiline", ["eval/task_.+"]],
    },
    "Groups": {
        "number": ["Multiline", ["groups/n_active"]],
        "scores": ["Multiline", ["groups/score_.+"]],
        "weights": ["Multiline", ["groups/weight_.+"]],
        "shares of the steps": ["Multiline", ["groups/share_.+"]],
        "KL divergences": ["Multiline", ["groups/kl_within", "groups/kl_between"]],
    },
    "Tasks drawn at reset": {
        "probabilities": ["Multiline", ["tasks/probability_.+"]],
        "scores": ["Multiline", ["tasks/score_.+"]],
    },
}
# HPARAMS: columns of metrics
METRICS = ("rollout/ep_rew_mean", "eval/mean_reward", "eval/worst_reward")
# HPARAMS: arguments without influence on learning, left out
NOT_SHOWN = ("self", "policy", "env", "tensorboard_log", "verbose", "_init_setup_model")


class TensorBoardCallback(BaseCallback):
    """
    Write HPARAMS (arguments of the model and its returns) and CUSTOM SCALARS (charts) at the start of training.

    Works with any algorithm of SB3. ``GRPO`` adds this callback by itself when it logs to TensorBoard. If writing fails, a
    warning is issued and training continues.
    """

    def _on_training_start(self) -> None:
        try:
            for output in tensorboard_outputs(self.logger):
                page = HParam(read_hyperparameters(self.model), dict.fromkeys(METRICS, 0.0))
                output.write({"hparams": page}, {"hparams": ()}, self.num_timesteps)
                output.writer.add_custom_scalars(LAYOUT)
        except Exception as error:
            warnings.warn(f"TensorBoard's HPARAMS and CUSTOM SCALARS could not be written: {error!r}", stacklevel=2)

    def _on_step(self) -> bool:
        return True


def tensorboard_outputs(logger: Logger) -> list[TensorBoardOutputFormat]:
    """
    Return the outputs of a logger that write TensorBoard event files.

    :param logger: logger of a model
    """
    return [output for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]


def read_hyperparameters(model: Any) -> dict[str, bool | float | str]:
    """
    Return the hyper-parameters of a model.

    :param model: a model of any algorithm of SB3
    :return: algorithm, policy class, number of environments, and the constructor's arguments that are attributes of the
        same name
    """
    names = [name for name in inspect.signature(type(model).__init__).parameters if name not in NOT_SHOWN]
    values = {"algorithm": type(model).__name__, "policy": model.policy_class.__name__, "n_envs": model.n_envs}
    values.update({name: getattr(model, name) for name in names if hasattr(model, name)})
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> bool | float | str:
    # schedules are shown by name and not called, because a call can have side effects or fail
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        value = value.val
    if isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))
