"""Uploads an export to the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path

from bayeslora_cli.errors import BayesloraError, UserError
from bayeslora_cli.models.backbones.places import backbone_path
from bayeslora_cli.runs.model_card import on_the_hub

logger = logging.getLogger("bayeslora")


def check_name(repository: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        UserError: the name is malformed.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {error}") from error


def warn_of_base(model: str, repository: str) -> None:
    """Warn if others will not find the base model that an adapter needs."""
    if not on_the_hub(model):
        logger.warning(
            "--push-to-hub %s: the adapter's base model, %s, is not on the hub, and "
            "adapter_config.json will name it by its path on this machine, %s; others need a copy "
            "of it, or --format merged",
            repository, model, backbone_path(model),
        )  # fmt: skip


def upload(directory: Path, repository: str) -> None:
    """Upload an export.

    Raises:
        BayesloraError: the hub refused it or cannot be reached; the directory is kept.
    """
    from huggingface_hub import HfApi  # imports slowly

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message="Export by bayeslora",
        )
    # no token, network or write permission: OSError, or error classes of the HTTP client and the
    # hub that differ between versions. No code of this package runs inside.
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BayesloraError(
            f"--push-to-hub {repository}: {first}. The export itself is complete: {directory} "
            "(--overwrite writes and uploads it again)"
        ) from error
    logger.info("uploaded to %s", repository)
