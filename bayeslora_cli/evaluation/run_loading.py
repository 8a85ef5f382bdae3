"""Loads the network of a finished run, with the weights that the run kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from bayeslora_cli.bayes import posterior
from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import DataError, ModelError, UserError
from bayeslora_cli.execution.device import pick_device, set_precision
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.backbones.identity import differences, model_identity
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.task import Examples, Task


def split_names(task: Task, split: str) -> tuple[str, ...]:
    """Return the splits that `--split` names: MNLI's validation and test are two splits each.

    Raises:
        DataError: there is no such split.
    """
    groups = {
        "train": ("train",),
        "validation": task.validation_splits,
        "test": task.test_splits,
        "ood": task.ood_splits,
    }
    groups = {name: splits for name, splits in groups.items() if splits}
    if split not in groups:
        raise DataError(f"--split {split}: {task.name} has {', '.join(groups)}")
    return groups[split]


def base_facts(config: RunConfig) -> dict[str, str]:
    """Return what result files say of the frozen weights' precision; {}: it is the run's own."""
    base = config.base_precision
    return {} if base is None else {"base_precision": base}


class LoadedRun(NamedTuple):
    """A finished run in memory."""

    network: Network
    """The network, at the posterior's mean."""
    tokenizer: Any
    """The backbone's tokenizer from transformers."""
    posterior: Posterior
    """The posterior, on the network's device."""

    def predicting(self, rows: Examples) -> LoadedRun:
        """Return the run as it predicts rows without labels (`Objective.predicting`)."""
        kind = self.network.objective.predicting(rows)
        return self._replace(network=replace(self.network, objective=kind))


def load_run(
    run: RunDir, config: RunConfig, objective: Objective, device: str, *, verify: bool = False
) -> LoadedRun:
    """Load the network of a finished run at its posterior mean, its tokenizer, and the posterior.

    Args:
        verify: hash the backbone's weights anew, whatever is remembered of them.
    Raises:
        UserError: raised by `build_network` or `posterior.load`, or the backbone's checkpoint is
            not the one that the run was trained on.
    """
    set_precision(config.precision)
    with of_the_training(run, "--model", "--target-modules", "--init-rank"):
        backbone = model_identity(
            config.model, trust_remote_code=config.trust_remote_code, verify=verify
        )
        _check_identity(run, config, backbone)
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        network = build_network(
            config, objective, tokenizer, posterior=False, device=pick_device(device),
            recorded=posterior.adapted_layers(run.posterior),
        )  # fmt: skip
    _check_backbone(run, config, network)
    kept = posterior.load(run.posterior, network)
    run.verify(run.posterior)
    kept.apply(network.bank)
    return LoadedRun(network, tokenizer, kept)


def load_model(config: RunConfig, objective: Objective, device: str) -> tuple[Network, Any]:
    """Load a pretrained model without a run: a network without adapters, and the tokenizer.

    Raises:
        ModelError: raised by `build_network`.
    """
    set_precision(config.precision)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    network = build_network(
        config, objective, tokenizer, posterior=False, device=pick_device(device), adapted=False
    )
    return network, tokenizer


@contextmanager
def of_the_training(run: RunDir, *options: str) -> Iterator[None]:
    """Reword errors about these options: the user gave them to the training, not this command."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(options):
            mend = "; name its new place with --model" if str(error).startswith("--model") else ""
            raise type(error)(f"{run.path} was trained with {error}{mend}") from error
        raise


def _check_identity(run: RunDir, config: RunConfig, backbone: Mapping[str, Any]) -> None:
    trained_on = run.read_json(run.environment)
    then = trained_on.get("identity")  # runs of earlier versions did not record it
    if isinstance(then, dict) and (changed := differences(then, backbone)):
        raise _another(run, config, trained_on, " and ".join(changed))


def _another(
    run: RunDir, config: RunConfig, trained_on: Mapping[str, Any], changed: str
) -> ModelError:
    revision = trained_on.get("model_revision")
    then = f"revision {revision}" if revision else "the checkpoint of then"
    return ModelError(
        f"{run.path} was trained with --model {config.model}: {changed}; put {then} in their "
        "place, or name its new place with --model"
    )


def _check_backbone(run: RunDir, config: RunConfig, network: Network) -> None:
    trained_on = run.read_json(run.environment)
    expected = trained_on.get("backbone_sha256")  # runs of earlier versions did not record it
    if expected is not None and expected != network.backbone_sha256:
        raise _another(run, config, trained_on, "its weights are others now")
