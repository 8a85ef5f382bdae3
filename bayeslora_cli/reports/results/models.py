"""Finds which runs adapted the same pretrained model, wherever it lay, and names the models."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora_cli.reports.results.outcomes import Outcome


def model_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the name of each run's model: the same for the same weights, else another.

    A run that recorded no checksum has the weights of the only checksum of the same path, if there
    is exactly one. Several models of one path are told apart by their checksums.
    """
    of_path: dict[str, set[str]] = {}
    for outcome in outcomes:
        sums = of_path.setdefault(outcome.config.model, set())
        sums |= {outcome.weights} - {""}
    names: dict[str, str] = {}
    found = []
    for outcome in outcomes:
        path = outcome.config.model
        known = {outcome.weights} - {""} or of_path[path]
        if len(known) != 1:
            found.append(path)
            continue
        (checksum,) = known
        several = len(of_path[path]) > 1
        found.append(names.setdefault(checksum, f"{path} {checksum[:8]}" if several else path))
    return found
