"""Epochs: use a rollout several times, minibatch by minibatch, until the policy has moved too far."""

from sb3_grpo.buffers import Rollout
from sb3_grpo.diagnostics import explain_refused_step
from sb3_grpo.losses import approx_kl
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.update import Update, UpdateStep


class EpochLoop:
    """
    Loop over the minibatches of a rollout, and record of what was done with them.

    :param update: what is done with a minibatch
    :param policy: the policy that it changes
    :param n_epochs: passes over the rollout
    :param batch_size: steps per minibatch
    :param verbose: 1: print a line when the loop stops early
    """

    def __init__(self, update: Update, policy: GroupActorCriticPolicy, n_epochs: int, batch_size: int, verbose: int = 0):
        self.update, self.policy = update, policy
        self.n_epochs, self.batch_size, self.verbose = n_epochs, batch_size, verbose
        self.steps: list[UpdateStep] = []  # one for each minibatch
        self.last_start = 0  # index of the first minibatch of the last epoch
        self.n_begun = 0  # epochs

    def run(self, rollout: Rollout, clip_range: float, clip_range_vf: float | None) -> None:
        """
        Use the rollout, until a step is refused because the KL divergence is too large.

        :param rollout: the rollout
        :param clip_range: clipping parameter of the surrogate
        :param clip_range_vf: clipping parameter of the value function; ``None``: no clipping
        :raises NonFiniteError: if a step is refused because its loss or gradient is NaN or infinite
        """
        for epoch in range(self.n_epochs):
            self.last_start = len(self.steps)
            self.n_begun += 1
            pending: list[Rollout] = []
            for batch in rollout.minibatches(self.batch_size):
                self.steps.append(self.update(batch, clip_range, clip_range_vf))
                pending.append(batch)
                if len(pending) > self.update.lookahead:
                    if self._find_refusal(pending, rollout, epoch):
                        return
                    pending = []
            if self._find_refusal(pending, rollout, epoch):
                return

    def _find_refusal(self, pending: list[Rollout], rollout: Rollout, epoch: int) -> bool:
        """Return whether the step of one of the last minibatches was refused; those after it are forgotten."""
        if not pending or self.steps[-1].accepted:
            return False
        first = len(self.steps) - len(pending)
        accepted = [bool(step.accepted) for step in self.steps[first:]]
        refused = accepted.index(False)
        del self.steps[first + refused + 1 :]
        explain_refused_step(self.policy, self.steps[-1], pending[refused], rollout)
        if self.verbose >= 1:
            kl = approx_kl(self.steps[-1].terms.log_ratio)
            print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
        return True
