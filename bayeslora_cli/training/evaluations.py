"""Which steps of a run are evaluated, and after which evaluation it ends before its last step."""

from __future__ import annotations

from dataclasses import dataclass

from bayeslora_cli.config.run_config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluations:
    """When a run is evaluated, and its early stopping."""

    total: int
    """Steps of the run."""
    per_epoch: int
    """Steps of an epoch."""
    every: int | None
    """Steps between evaluations from the second epoch on; None: only at the ends of epochs."""
    patience: int | None
    """Evaluations without a better one after which the run ends; None: it does all its steps."""
    final_step: int
    """Step of the last allocation of ranks; -1: the method allocates none."""

    def due(self, done: int) -> bool:
        """Return whether the run is evaluated after `done` steps."""
        if done == self.total or done % self.per_epoch == 0:
            return True
        return self.every is not None and done > self.per_epoch and done % self.every == 0

    def at_budget(self, done: int) -> bool:
        """Return whether the ranks are final after `done` steps. Only such evaluations count for
        early stopping: before, the metric falls as ranks are pruned, and a run that ended there
        would have other ranks than it was asked for."""
        return done > self.final_step

    def over(self, waited: int) -> bool:
        """Return whether the run ends after `waited` counted evaluations without a better one."""
        return self.patience is not None and waited >= self.patience

    @property
    def counted(self) -> int:
        """Number of evaluations of a whole run that count for early stopping."""
        return sum(map(self.due, range(max(1, self.final_step + 1), self.total + 1)))

    def warning(self) -> str | None:
        """Return a warning if no evaluation of the run can end it early."""
        if self.patience is None or (counted := self.counted) > self.patience + 1:
            return None
        ranks = " while the ranks are final, in the last --t-final steps" * (self.final_step >= 0)
        return (
            f"--patience {self.patience} cannot end the run early: it is evaluated only {counted} "
            f"time{'s' if counted > 1 else ''}{ranks}. Lower it, or give --eval-every"
        )


def evaluations_of(config: RunConfig, per_epoch: int, final_step: int) -> Evaluations:
    """Return the evaluations of a run; `config` has its final schedule."""
    return Evaluations(
        total=config.total_steps,
        per_epoch=per_epoch,
        every=config.eval_every,
        patience=config.patience,
        final_step=final_step,
    )
