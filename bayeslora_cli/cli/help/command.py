"""`Command`: a command with a short and a full help, which explains other trainers' names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

from bayeslora_cli.config.files.foreign_names import hint
from bayeslora_cli.config.options import flag_of
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.reports.terminal_text import harmless

FULL_HELP = "--help-all"


@contextmanager
def _escaped() -> Iterator[None]:
    """Escape what was typed in the messages that click makes of it."""
    try:
        yield
    except Exception as error:
        # recognises click's errors by their attribute: some versions of typer contain click
        if isinstance(message := getattr(error, "message", None), str):
            error.message = harmless(message)  # type: ignore[attr-defined]
        raise


class Group(TyperGroup):
    """The program, whose subcommands are `Command`s."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the subcommand."""
        with _escaped():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the subcommand."""
        with _escaped():
            return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A subcommand: `--help` shows the options that most users need, `--help-all` all."""

    rare: ClassVar[frozenset[str]] = frozenset()
    """Parameters that only `--help-all` shows."""
    examples: ClassVar[tuple[str, ...]] = ()
    """Command lines for the end of the help."""

    def help_of(self, parameter: Any) -> str | None:
        """Return the help text of one option."""
        text: str | None = parameter.help
        return text

    def completed(self, words: list[str]) -> list[str]:
        """Return the words with a value behind each flag that may stand without one."""
        return words

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            ConfigError: there are names from other trainers; the message gives the options here.
        """
        if FULL_HELP in args:
            ctx.meta[FULL_HELP] = True
            args = ["--help"]
        args = self.completed(args)
        given = list(args)  # a copy: the parser removes words from the list
        try:
            with _escaped():
                return super().parse_args(ctx, args)
        except Exception as error:
            # click's NoSuchOption, likewise
            problems = self._foreign(given) if hasattr(error, "possibilities") else []
            if not problems:
                raise
            raise ConfigError(problems) from None

    def _foreign(self, words: list[str]) -> list[str]:
        """Return advice for the names that are not options of this command but are known."""
        flags = {flag for parameter in self.params for flag in parameter.opts}
        typed = [word.partition("=")[0] for word in words if word.startswith("--")]
        found = {
            name: hint(
                name, lambda n, v: f"{flag_of(n)} {v}".strip(), lambda n: flag_of(n) in flags
            )
            for name in typed
            if name not in flags
        }
        return [f"{name}: {advice}" for name, advice in found.items() if advice]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the options of the requested help, then examples."""
        full = FULL_HELP in ctx.meta
        parameter: Any  # arguments have no such attributes
        for parameter in self.params:
            if parameter.param_type_name == "option":
                parameter.hidden = parameter.name in self.rare and not full
                parameter.help = self.help_of(parameter)
        super().format_help(ctx, formatter)
        lines = ["Examples:", *(f"  {example}" for example in self.examples)] * bool(self.examples)
        if self.rare and not full:
            lines += ["", f"{ctx.command_path} {FULL_HELP} shows {len(self.rare)} more options."]
        formatter.write("\n".join([*lines, ""]))
