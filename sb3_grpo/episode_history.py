"""History of the episodes: where each cell began, where it is, and the best that it has reached."""

import numpy as np
import torch as th
from torch import nn

# A cell began at the mean of all episodes up to the rollout that brings this many. That of the first so many alone would be
# that of short episodes, which end before the others
N_FIRST = 20
# Episodes that the present mean stands for: a plain mean up to so many, an exponential one from then on
N_RECENT = 20


class EpisodeHistory(nn.Module):
    """
    Hold statistics of the returns of each cell's episodes; an episode belongs to the cell of its last step.

    They are kept by cell, so that merging and splitting groups does not change them.

    :param n_cells: number of cells
    """

    count: th.Tensor  # episodes, shape (C,)
    first: th.Tensor  # mean return of the first ones, see ``N_FIRST``, shape (C,); 0 before the first
    recent: th.Tensor  # mean return of about the last ``N_RECENT``, shape (C,)
    best: th.Tensor  # the largest return of an episode, shape (C,)

    def __init__(self, n_cells: int):
        super().__init__()
        for name in ("count", "first", "recent", "best"):
            self.register_buffer(name, th.zeros(n_cells), persistent=False)

    def update(self, returns: np.ndarray, cells: np.ndarray) -> None:
        """
        Take the episodes that ended in one rollout into account.

        :param returns: return of each, finite, in the order in which they ended, shape ``(E,)``
        :param cells: cell of each, shape ``(E,)``
        """
        count, first, recent, best = (tensor.cpu().numpy().astype(np.float64) for tensor in self.buffers())
        for cell in np.unique(cells).tolist():
            own = returns[cells == cell]
            known, new = count[cell], len(own)
            best[cell] = max(own.max(), best[cell]) if known else own.max()
            if known < N_FIRST:
                first[cell] = (first[cell] * known + own.sum()) / (known + new)
            rate = max(1 - (1 - 1 / N_RECENT) ** new, new / (known + new))
            recent[cell] += rate * (own.mean() - recent[cell])
            count[cell] = known + new
        for tensor, values in zip(self.buffers(), (count, first, recent, best), strict=True):
            tensor.copy_(th.as_tensor(values.astype(np.float32)))

    def spans(self, targets: np.ndarray | None) -> np.ndarray:
        """
        Compute how far each cell has to go from its low return to its reference.

        :param targets: low return and reference of each cell, shape ``(C, 2)``; a low return that is NaN is the mean of the
            first episodes. ``None``: from there to the best episode that the cell has had
        :return: shape ``(C,)``, at least 0; 0 where there is no way to go, or no episode yet
        """
        first, best, count = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.first, self.best, self.count))
        low, reference = (first, best) if targets is None else targets.T
        return np.where(count > 0, np.maximum(reference - np.where(np.isnan(low), first, low), 0), 0)

    def gaps(self, targets: np.ndarray | None) -> np.ndarray:
        """
        Compute which share of its way each cell still has to go: ``(ref - R) / (ref - R_0)``.

        :param targets: as in :meth:`spans`
        :return: shape ``(C,)``, from 0 (the reference is reached) to 1 (the low return, or worse). Without a way to go it is
            0 if a target is reached, and 1 otherwise, as where all episodes were alike and nothing has been learnt
        """
        recent, best, count = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.recent, self.best, self.count))
        spans, reference = self.spans(targets), best if targets is None else targets[:, 1]
        gaps = np.divide(reference - recent, spans, out=np.ones_like(recent), where=spans > 0).clip(0, 1)
        if targets is not None:
            gaps[recent >= reference] = 0.0
        return np.where(count > 0, gaps, 1.0)
