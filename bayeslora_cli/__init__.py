"""bayeslora: low-rank fine-tuning with ranks allocated by a Bayesian importance score.

    import bayeslora_cli as bl

    run = bl.train(task="mrpc", criterion="snr", seed=2021)

Importing it imports no torch: each name of `__all__` is imported when it is first used.
"""

import logging
from typing import TYPE_CHECKING, Any

from bayeslora_cli import errors as errors

if TYPE_CHECKING:
    from bayeslora_cli.api.cuts import cut_adapter as cut_adapter
    from bayeslora_cli.api.cuts import cut_table as cut_table
    from bayeslora_cli.api.exports import Export as Export
    from bayeslora_cli.api.models import evaluate as evaluate
    from bayeslora_cli.api.models import generate as generate
    from bayeslora_cli.api.reading.report import report as report
    from bayeslora_cli.api.reading.report import watch as watch
    from bayeslora_cli.api.reading.results import Results as Results
    from bayeslora_cli.api.reading.results import inspect_ranks as inspect_ranks
    from bayeslora_cli.api.reading.results import results as results
    from bayeslora_cli.api.run import Run as Run
    from bayeslora_cli.api.training import Plan as Plan
    from bayeslora_cli.api.training import Reporter as Reporter
    from bayeslora_cli.api.training import plan as plan
    from bayeslora_cli.api.training import train as train
    from bayeslora_cli.api.training import workspace as workspace
    from bayeslora_cli.bayes import criteria as criteria
    from bayeslora_cli.evaluation.evaluation import Evaluation as Evaluation
    from bayeslora_cli.evaluation.generation import Generation as Generation
    from bayeslora_cli.export.formats.integer_codes import load_quantized as load_quantized

# PEFT imports bitsandbytes wherever it is, which on some CPUs warns that a faster kernel is missing
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
_PLACES = {
    "Evaluation": "bayeslora_cli.evaluation.evaluation:Evaluation",
    "Export": "bayeslora_cli.api.exports:Export",
    "Generation": "bayeslora_cli.evaluation.generation:Generation",
    "Plan": "bayeslora_cli.api.training:Plan",
    "Reporter": "bayeslora_cli.api.training:Reporter",
    "Results": "bayeslora_cli.api.reading.results:Results",
    "Run": "bayeslora_cli.api.run:Run",
    "cut_adapter": "bayeslora_cli.api.cuts:cut_adapter",
    "cut_table": "bayeslora_cli.api.cuts:cut_table",
    "evaluate": "bayeslora_cli.api.models:evaluate",
    "generate": "bayeslora_cli.api.models:generate",
    "inspect_ranks": "bayeslora_cli.api.reading.results:inspect_ranks",
    "load_quantized": "bayeslora_cli.export.formats.integer_codes:load_quantized",
    "plan": "bayeslora_cli.api.training:plan",
    "report": "bayeslora_cli.api.reading.report:report",
    "results": "bayeslora_cli.api.reading.results:results",
    "train": "bayeslora_cli.api.training:train",
    "watch": "bayeslora_cli.api.reading.report:watch",
    "workspace": "bayeslora_cli.api.training:workspace",
}
__all__ = [*_PLACES, "criteria", "errors"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "criteria":
        from bayeslora_cli.bayes import criteria

        return criteria
    if name in _PLACES:
        from bayeslora_cli.config.catalogue import implementation

        return implementation(_PLACES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
