"""Make sure that there is always a merge or a split to interrupt: the only override of internals in this folder."""

from typing import Any

from benchmarks.lib.groups import n_groups
from sb3_grpo import RegroupCallback
from sb3_grpo.grouping import Merge, Split


class RestlessCallback(RegroupCallback):
    """Merge and split the same two of four groups whenever groups are compared, whatever the probes say."""

    def _plan(self, divergences: Any) -> list[Merge | Split]:
        if n_groups(self._grpo) == 4:
            return [Merge(keep=0, gone=1, share=0.5, kl=0.0)]
        return [Split(group=0, new_group=1, cells=[1], kl=1.0)]
