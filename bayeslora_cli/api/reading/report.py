"""`report`: a page about runs; `watch`: the same page of a running training, on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.outcomes import AT

if TYPE_CHECKING:
    from bayeslora_cli.reports.page.predictions import RunPredictions
    from bayeslora_cli.reports.page.records import RunRecord

logger = logging.getLogger("bayeslora")

BYTES = 8_000_000
"""Size from which on a page is slow to open; it shows fewer runs in detail to keep below it."""


def report(
    *paths: str | Path,
    output: str | Path = "report.html",
    at: str | None = None,
    evaluate: bool = True,
    samples: int | None = None,
    data: str | None = None,
    model: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Path:
    """Write one page about the runs at `paths`, or anywhere below them; return its path.

    Args:
        output: the page, FILE.html.
        at: the evaluation that counts: best_at_budget (None), best or last.
        evaluate: predict the validation rows of each finished run, for its reliability diagram and
            its examples; False: load no model.
        samples: predict over this many samples of the posterior as well, where a run has one.
        data, model: new places of the data and of the pretrained model; None: where they were.
        device: cpu, cuda, cuda:N or auto.
        trust_remote_code: run Python code that comes with the model.
    Raises:
        UserError: there is no run, a file is corrupt, plotly is missing, or the page cannot be
            written. A run whose rows cannot be predicted is shown without predictions.
    """
    from bayeslora_cli.reports.page.page import DETAILED, check_page, page, sections, write_page
    from bayeslora_cli.reports.page.records import detailed, load_records

    target = Path(output)
    check_page(target)
    records, results = load_records([Path(path) for path in paths], _checked(at))
    predicted: dict[str, RunPredictions] = {}
    notes: dict[str, int] = {}
    if evaluate:
        options = {"data": data, "model": model, "device": device,
                   "trust_remote_code": trust_remote_code}  # fmt: skip
        predicted, notes = _predictions(detailed(records, DETAILED), samples, options)
    most = DETAILED
    text = page(records, sections(records, results, predicted, notes, most))
    while (size := len(text.encode())) > BYTES and most > 1:
        most = most * 3 // 4
        text = page(records, sections(records, results, predicted, notes, most))
    write_page(target, text)
    if size > BYTES:
        logger.warning("%s has %.1f MB; name fewer runs", target, size / 1e6)
    return target


def watch(
    *paths: str | Path,
    at: str | None = None,
    port: int = 0,
    started: Callable[[str], None] = print,
) -> None:
    """Serve the page of the runs at `paths` on this machine until Ctrl-C; it follows the files.

    Args:
        at: as for `report`.
        port: of 127.0.0.1; 0: any free one.
        started: called with the page's address.
    Raises:
        UserError: there is no run, plotly is missing, or the port is taken.
    """
    from bayeslora_cli.reports.page.live_server import serve
    from bayeslora_cli.reports.page.page import check_page

    check_page(None)
    serve([Path(path) for path in paths], _checked(at), port, started)


def _checked(at: str | None) -> str:
    if at not in (None, *AT):
        raise UserError(f"--at {at}: choose one of {', '.join(AT)}{nearest(str(at), AT)}")
    return at or AT[0]


class _Once(logging.Filter):
    """Lets each warning pass once, and counts those that say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.repeated = 0

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in self.seen:
            self.seen.add(text)
            return True
        self.repeated += 1
        return False


@contextmanager
def _counting_repeats() -> Iterator[None]:
    """Count warnings that repeat an earlier one, in place of showing them."""
    told = _Once()
    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)
    if told.repeated:
        logger.warning("%s more warnings of these runs say the same as one above", told.repeated)


def _predictions(
    records: Sequence[RunRecord], samples: int | None, options: dict[str, Any]
) -> tuple[dict[str, RunPredictions], dict[str, int]]:
    """Evaluate the finished runs.

    Returns:
        Predictions by anchor, and why runs have none, with the number of these.
    """
    from bayeslora_cli.api.arguments import sampling_of
    from bayeslora_cli.evaluation.run_evaluation import evaluate_run
    from bayeslora_cli.reports.page.examples import summarise
    from bayeslora_cli.reports.page.records import by_reason, counted
    from bayeslora_cli.tasks.objectives.objective import objective_of

    done = [r for r in records if r.result is not None and r.task is not None]
    found: dict[str, RunPredictions] = {}
    problems: dict[Path, UserError] = {}
    with _counting_repeats():
        for number, record in enumerate(done, start=1):
            assert record.task is not None
            logger.info("predicting the validation rows, run %s of %s: %s", number, len(done),
                        record.run.path)  # fmt: skip
            objective = objective_of(record.task)
            has_posterior = OPTIMIZERS[record.config.optimizer].posterior
            try:
                evaluation = evaluate_run(
                    record.run.path,
                    sampling=sampling_of(samples if has_posterior else None, None, None),
                    reliability=objective.has_confidence,
                    **options,
                )
            except UserError as error:
                problems[record.run.path] = error
            else:
                found[record.anchor] = summarise(evaluation, objective)
    reasons = by_reason(problems)
    for reason, runs in reasons.items():
        logger.warning("%s shown without predictions: %s", counted(runs), reason)
    return found, {reason: len(runs) for reason, runs in reasons.items()}
