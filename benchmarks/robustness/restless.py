"""Make sure that there is always a merge or a split to interrupt: the only override of internals in this folder."""

from typing import Any

from sb3_grpo import RegroupCallback
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.regroup_plan import Merge, Split


class RestlessCallback(RegroupCallback):
    """Merge and split the same two of four groups whenever groups are compared, whatever the probes say."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        vars(self._grpo.regrouper)["plan"] = plan_restlessly


def plan_restlessly(policy: GroupActorCriticPolicy, *_: Any) -> list[Merge | Split]:
    """
    Plan a merge where there are four groups, otherwise a split.

    :param policy: the policy
    :param _: what else there is to decide by
    """
    if len(policy.grouping.active) == 4:
        return [Merge(keep=0, dropped=1, share=0.5, kl=0.0)]
    return [Split(group=0, new_group=1, cells=[1], kl=1.0)]
