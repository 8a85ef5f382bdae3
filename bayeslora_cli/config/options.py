"""What is known of an option of `bayeslora train`, stated once, at its field of `RunConfig`.

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
"""Of the help, in its order."""

Text = str | Callable[[], str]
"""A text, or a function that makes it of the catalogue when it is shown."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A value of another option beside which this one has no effect."""

    name: str
    """The other option's field."""
    holds: Callable[[Any], bool]
    """Of its value: whether this option has no effect."""
    why: str | None = None
    """How a message names it; None: by the flag and the value."""


def beside(name: str, *values: Any) -> Condition:
    """No effect beside these values of the option `name`."""
    return Condition(name, lambda value: value in values)


def beside_any(name: str) -> Condition:
    """No effect beside any value of the option `name`."""
    return Condition(name, lambda value: value is not None, _flag(name))


def unless(name: str, needed: Any) -> Condition:
    """No effect beside any other value of the option `name`."""
    return Condition(name, lambda value: value != needed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option and its traits."""

    name: str = ""
    """Of the field."""
    type: str = ""
    """Of the field, as it is annotated."""
    default: Any
    help: Text
    """What the value does and its unit, without the full stop; {choices} stands for those."""
    panel: str
    """Of the help; one of `PANELS`."""
    default_text: Text | None = None
    """What the help says of the default; None: the field's value. Empty: nothing."""
    deep: bool = True
    """Whether most users never need it."""
    typed: bool = True
    """Whether the command line has it."""
    typed_only: bool = False
    """Whether only the command line may set it, no file."""

    checks: tuple[Callable[[Any], object], ...] = ()
    """Each raises a ValueError for a value that cannot be, which says what can. None passes."""
    choices: Collection[str] | None = None
    """What it, or each item of it, must be one of; a table of the catalogue is looked up when
    needed."""
    narrowed: bool = False
    """Whether the other options narrow the choices, so that it is checked beside them."""
    path: bool = False
    """Whether it may name a file or directory, which is kept by its absolute path."""

    affects_result: bool = True
    """Whether two runs that differ in it have different results: a resume refuses that."""
    idle_when: tuple[Condition, ...] = ()
    """It has no effect if any of these holds, nor with a method or optimizer whose catalogue entry
    lacks it."""
    shares_network: bool = False
    """Whether runs that differ in it can be trained with the same network and buffers."""

    source: bool = False
    """Whether it decides which rows are read: runs that share these read them once."""
    decides_code: bool = False
    """Whether it decides the code of a backbone's block, which runs that share it compile once."""

    scales: int | None = None
    """A step number that scales with the run's length, not below this; None: it does not scale."""
    fitted: bool = False
    """Whether its final value depends on the data or the backbone."""

    sweep: Callable[[str], tuple[Any, ...]] | None = None
    """Reads a list of values, to train a run each; None: it takes no list."""
    sweep_flag: str | None = None
    """The flag of such lists, where it is not the option's own."""
    varies: int = 0
    """Its place among the lists: the smallest varies slowest; at equal places the first field."""
    part_of_name: Literal["row", "rank", "run"] | None = None
    """As what the name of a run's directory has it: the method row, its rank, or the run in it."""
    always_told: bool = False
    """Whether tables of results tell it wherever runs differ in it, even at a preset's value."""

    @property
    def flag(self) -> str:
        """As it is typed; in parentheses what cannot be."""
        return _flag(self.name) if self.typed else f"({self.name})"

    @property
    def is_final(self) -> bool:
        """Whether its value is known before the data and the backbone are."""
        return self.scales is None and not self.fitted

    @property
    def is_list(self) -> bool:
        """Whether its value is a tuple, typed with commas."""
        return self.type.startswith("tuple")

    def text(self, in_presets: str = "") -> str:
        """What the help says of it.

        Args:
            in_presets: the values that built-in presets give it, as text.
        """
        shown = self.shown_default()
        facts = [f"default: {shown}"] if shown else []
        if in_presets not in ("", shown):
            facts.append(f"presets: {in_presets}")
        return f"{self.meaning()} ({'; '.join(facts)})." if facts else f"{self.meaning()}."

    def meaning(self) -> str:
        """What the value does, without the default and the full stop."""
        return _made(self.help).replace("{choices}", listed(self.choices or ()))

    def shown_default(self) -> str:
        """The default as text; empty if there is nothing to say of it."""
        if self.default_text is not None:
            return _made(self.default_text)
        if isinstance(self.default, bool) or self.default is None:
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def option(default: Any, panel: str, help: Text, **traits: Any) -> Any:
    """A field of `RunConfig`; `traits` are those of `Option`."""
    found = Option(default=default, panel=panel, help=help, **traits)
    return field(default=default, metadata={"option": found})


def declared(config: type) -> dict[str, Option]:
    """The options that a dataclass declares, by field name."""
    return {
        f.name: replace(f.metadata["option"], name=f.name, type=str(f.type)) for f in fields(config)
    }


def listed(names: Collection[str]) -> str:
    """Names as in a sentence: a, b (its note) or c."""
    notes = {n: names[n] for n in names} if isinstance(names, Mapping) else {}
    noted = [f"{n} ({note})" if (note := getattr(notes.get(n), "note", "")) else n for n in names]
    return " or ".join(filter(None, (", ".join(noted[:-1]), *noted[-1:])))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _made(text: Text) -> str:
    return text if isinstance(text, str) else text()
