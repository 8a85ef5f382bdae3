"""The commands, each with the options of its short help and the examples at its end."""

from __future__ import annotations

from typing import Any

from bayeslora_cli.cli.help.command import Command
from bayeslora_cli.config.files.presets import values_in_presets
from bayeslora_cli.config.run_config import OPTIONS


class TrainCommand(Command):
    """`bayeslora train`."""

    rare = frozenset(
        {name for name, option in OPTIONS.items() if option.typed and option.deep}
        | {"list_presets", "print_commands", "gpu_memory", "quiet", "verbose"}
    )
    examples = (
        "bayeslora train --task demo",
        "bayeslora train --preset mrpc --data glue/MRPC --seeds 2021-2025",
        "bayeslora train --train-file train.csv --eval-file dev.csv --target-rank 4",
        "bayeslora train --task rte,mrpc --criterion snr,sensitivity --jobs 2 --dry-run",
    )

    def completed(self, words: list[str]) -> list[str]:
        """Put the usual value behind each flag that stands without one (`Option.bare`)."""
        found = []
        for word, after in zip(words, [*words[1:], "-"], strict=False):
            option = OPTIONS.get(word.removeprefix("--").replace("-", "_"))
            bare = option.bare if option is not None and word == option.flag else None
            found.append(f"{word}={bare}" if bare and after.startswith("-") else word)
        return found

    def help_of(self, parameter: Any) -> str | None:
        """Return the help text of one option, with the values of the presets."""
        option = OPTIONS.get(parameter.name)
        if option is None:
            return super().help_of(parameter)
        return option.text(values_in_presets().get(option.name, ""))


class EvalCommand(Command):
    """`bayeslora eval`."""

    rare = frozenset(
        {"temperature", "seed", "submission", "batch_size", "trust_remote_code", "base_precision"}
        | {"at", "markdown", "latex", "as_csv", "reference", "paired"}
    )
    examples = (
        "bayeslora eval RUN --samples 16",
        "bayeslora eval RUN --eval-file new.jsonl --predictions predicted.csv",
        "bayeslora eval RUN --samples 16 --ood mrpc --reliability reliability.pdf",
        "bayeslora eval RUN --cut 2,1,0.5 --by snr,singular-values",
        "bayeslora eval RUN --task mmlu --shots 5",
        "bayeslora eval --model DIR --task arc-easy --data DIR",
    )


class TableCommand(Command):
    """`bayeslora table`."""

    examples = (
        "bayeslora table runs",
        "bayeslora table runs --latex --at best",
        "bayeslora table runs --paired 'ivon snr' 'adamw sensitivity'",
    )


class InspectRanksCommand(Command):
    """`bayeslora inspect-ranks`."""

    examples = (
        "bayeslora inspect-ranks RUN",
        "bayeslora inspect-ranks runs --output ranks.pdf",
        "bayeslora inspect-ranks --compare SNR_RUNS SENSITIVITY_RUNS",
    )


class ReportCommand(Command):
    """`bayeslora report`."""

    rare = frozenset({"trust_remote_code", "model", "port"})
    examples = (
        "bayeslora report RUN",
        "bayeslora report runs --samples 16 --output sweep.html",
        "bayeslora report --live RUN",
    )


class ExportCommand(Command):
    """`bayeslora export`."""

    rare = frozenset(
        {
            "patterns",
            "uniform_rank",
            "check_rows",
            "check_inputs",
            "data",
            "eval_file",
            "trust_remote_code",
        }
    )
    examples = (
        "bayeslora export RUN --format lora",
        "bayeslora export RUN --format merged --output my-model",
        "bayeslora export RUN --format lora --target-rank 1 --push-to-hub me/my-adapter",
    )


class GenerateCommand(Command):
    """`bayeslora generate`."""

    rare = frozenset({"system", "precision", "base_precision", "verify", "trust_remote_code"})
    examples = (
        "bayeslora generate RUN --prompt 'Why is the sky blue?'",
        "bayeslora generate RUN --samples 3 --temperature 0.7 --prompt -",
        "bayeslora generate --model Qwen/Qwen2.5-0.5B-Instruct --prompt Hello",
    )


class PredictCommand(Command):
    """`bayeslora predict`."""

    rare = frozenset(
        {"temperature", "seed", "text_columns", "batch_size", "model", "verify"}
        | {"trust_remote_code", "base_precision"}
    )
    examples = (
        "bayeslora predict RUN texts.txt > predicted.jsonl",
        "bayeslora predict RUN new.csv --output predicted.csv",
        "bayeslora predict RUN new.jsonl --top-k 3 --samples 8 --keep id",
    )


class PresetsCommand(Command):
    """`bayeslora presets`."""

    examples = (
        "bayeslora presets",
        "bayeslora presets mrpc --criterion sensitivity > mine.toml",
        "bayeslora train --preset mine.toml",
    )
