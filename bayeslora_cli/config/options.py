"""`Option`: all facts about an option of `bayeslora train`, stated once, at its `RunConfig` field.

The command line, the keys of presets, validation, "has no effect", sweeps, the names of run
directories and the tables of results are made from these traits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

WHAT, OWN, METHOD, RANKS = "What to train", "Your own data", "Method", "Ranks"
WIDTHS = "Ranks and bit widths (B-LoRA)"
LENGTH, RATES, POSTERIOR = "How long", "Learning rates", "Posterior (IVON)"
MACHINE, SWEEP, PRINTED = "Machine and output", "Several runs", "What is printed"
PANELS = (WHAT, OWN, METHOD, RANKS, WIDTHS, LENGTH, RATES, POSTERIOR, MACHINE, SWEEP, PRINTED)
"""Panels of the help, in their order."""

Text = str | Callable[[], str]
"""A text, or a function that makes it from the catalogue when it is shown."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on another option under which an option has no effect."""

    name: str
    """The other option's field."""
    holds: Callable[[Any], bool]
    """Tells for the other option's value whether this option has no effect."""
    why: str | None = None
    """Name of the condition in messages; None: the flag and the value."""


def beside(name: str, *values: Any) -> Condition:
    """Make the condition that `name` has one of these values."""
    return Condition(name, lambda value: value in values)


def beside_any(name: str) -> Condition:
    """Make the condition that `name` has any value."""
    return Condition(name, lambda value: value is not None, flag_of(name))


def unless(name: str, *needed: Any) -> Condition:
    """Make the condition that `name` has none of these values."""
    return Condition(name, lambda value: value not in needed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option and its traits."""

    name: str = ""
    """Name of the field."""
    type: str = ""
    """The field's type, as it is annotated."""
    default: Any
    help: Text
    """What the value does, and its unit, without a full stop; {choices} stands for the choices."""
    panel: str
    """Panel of the help, one of `PANELS`."""
    default_text: Text | None = None
    """The default as the help shows it; None: the field's value; empty: nothing."""
    deep: bool = True
    """Whether most users never need it."""
    typed: bool = True
    """Whether it can be typed on the command line."""
    typed_only: bool = False
    """Whether only the command line may set it, no file."""

    checks: tuple[Callable[[Any], object], ...] = ()
    """Each raises a ValueError for a wrong value; its text tells the fix. None is not checked."""
    typed_as: str = ""
    """The flag that users type, where it is not the field's name."""
    choices: Collection[str] | None = None
    """Allowed values of the option, or of each item of a list; a table of the catalogue is read
    when needed."""
    spelled: Callable[[str], str] | None = None
    """Turns what users write into one of the choices; None: they write it as it is."""
    bare: str | None = None
    """The value that the flag has if none of the choices is typed behind it; None: one must be.
    Files and Python may say true for it, and false for the default."""
    narrowed: bool = False
    """Whether other options narrow the choices, so that it is checked together with them."""
    path: bool = False
    """Whether it may name a file or directory, which is kept by its absolute path."""

    affects_result: bool = True
    """Whether two runs that differ in it have different results: a resume refuses that."""
    idle_when: tuple[Condition, ...] = ()
    """The option has no effect if any of these holds, or if the catalogue entry of the method or
    optimizer lacks it."""
    shares_network: bool = False
    """Whether runs that differ in it can be trained with the same network and buffers."""

    source: bool = False
    """Whether it decides which rows are read: runs with equal values of these read them once."""
    decides_code: bool = False
    """Whether it decides a backbone block's code: runs with equal values compile a block once."""

    scales: int | None = None
    """Smallest value of a step number that scales with the run's length; None: no scaling."""
    fitted: bool = False
    """Whether its final value depends on the data or the backbone."""

    sweep: Callable[[str], tuple[Any, ...]] | None = None
    """Reads a list of values, which trains one run per value; None: the option takes no list."""
    sweep_flag: str | None = None
    """The flag of such lists, if it is not the option's own."""
    varies: int = 0
    """Order among the lists: the smallest number varies slowest; if equal, the first field."""
    part_of_name: Literal["row", "rank", "run"] | None = None
    """Part of the run directory's name that has its value: the method row, its rank, or the run."""
    always_told: bool = False
    """Whether tables of results always show it if runs differ in it, even at a preset's value."""

    @property
    def flag(self) -> str:
        """The flag that users type; in parentheses if the option cannot be typed."""
        return (self.typed_as or flag_of(self.name)) if self.typed else f"({self.name})"

    @property
    def is_final(self) -> bool:
        """Whether its value is known before data and backbone are loaded."""
        return self.scales is None and not self.fitted

    @property
    def is_list(self) -> bool:
        """Whether its value is a tuple, typed with commas."""
        return self.type.startswith("tuple")

    def text(self, in_presets: str = "") -> str:
        """Write the option's help.

        Args:
            in_presets: the values that built-in presets give it, as text.
        """
        shown = self.shown_default()
        facts = [f"default: {shown}"] if shown else []
        if in_presets not in ("", shown):
            facts.append(f"presets: {in_presets}")
        return f"{self.meaning()} ({'; '.join(facts)})." if facts else f"{self.meaning()}."

    def meaning(self) -> str:
        """Write what the value does, without the default and the full stop."""
        return _made(self.help).replace("{choices}", listed(self.choices or ()))

    def shown_default(self) -> str:
        """Return the default as text; empty if the help shows none."""
        if self.default_text is not None:
            return _made(self.default_text)
        if isinstance(self.default, bool) or self.default is None:
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def option(default: Any, panel: str, help: Text, **traits: Any) -> Any:
    """Declare a field of `RunConfig`; `traits` are fields of `Option`."""
    found = Option(default=default, panel=panel, help=help, **traits)
    return field(default=default, metadata={"option": found})


def declared(config: type) -> dict[str, Option]:
    """Return the options that a dataclass declares, by field name."""
    return {
        f.name: replace(f.metadata["option"], name=f.name, type=str(f.type)) for f in fields(config)
    }


def settle(options: Mapping[str, Option], config: Any) -> None:
    """Replace true and false by the values that they stand for (`Option.bare`), and other spellings
    by the choices that they mean (`Option.spelled`), in place."""
    for name, option in options.items():
        if option.spelled is not None and isinstance(written := getattr(config, name), str):
            object.__setattr__(config, name, option.spelled(written))
        if option.bare is not None and isinstance(getattr(config, name), bool):
            value = option.bare if getattr(config, name) else option.default
            object.__setattr__(config, name, value)


def listed(names: Collection[str]) -> str:
    """List names as in a sentence: a, b (its note) or c."""
    notes = {n: names[n] for n in names} if isinstance(names, Mapping) else {}
    noted = [f"{n} ({note})" if (note := getattr(notes.get(n), "note", "")) else n for n in names]
    return " or ".join(filter(None, (", ".join(noted[:-1]), *noted[-1:])))


def flag_of(name: str) -> str:
    """Return the flag of an option by the name of its field or parameter."""
    return f"--{name.replace('_', '-')}"


def _made(text: Text) -> str:
    return text if isinstance(text, str) else text()
