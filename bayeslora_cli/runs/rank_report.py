"""`RankReport`: the ranks and bit widths of a run's matrices, read and written without torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from bayeslora_cli.errors import RunDirError

SCHEMA = 1
GATES = "gates"
"""Stands for the criterion if gates decide the ranks; they keep the first triplets of a matrix."""
FLOAT_BITS = 32
"""Bit width of an operand that is not quantized, and the largest width."""
LARGEST_SCORE = sys.float_info.max  # JSON has no largest integer
# the paper's names of the matrices (figure 1), by the layer's name; the first match counts
KINDS: tuple[tuple[str, str], ...] = (
    (r"query_proj|query|q_proj|q_lin|q", "W_q"),
    (r"key_proj|key|k_proj|k_lin|k", "W_k"),
    (r"value_proj|value|v_proj|v_lin|v", "W_v"),
    (r"attention\.output\.dense|o_proj|out_proj|out_lin|o", "W_o"),
    (r"intermediate\.dense|ffn\.lin1|fc1", "W_f1"),
    (r"output\.dense|ffn\.lin2|fc2", "W_f2"),
    # decoders have it; the paper has no decoders
    (r"gate_proj", "W_gate"),
    (r"up_proj", "W_up"),
    (r"down_proj", "W_down"),
    (r"pooler\.dense", "W_pool"),
)


def kind_of(name: str) -> str:
    """Return the paper's name of a matrix, else the last part of the layer's name.

    See `kinds_of`.
    """
    for pattern, kind in KINDS:
        if re.search(rf"(^|\.)({pattern})$", name):
            return kind
    return name.rpartition(".")[2]


def kinds_of(names: Sequence[str]) -> list[str]:
    """Return the kinds of one model's matrices, each kind once per layer.

    If matrices of a layer have the same kind, the parts of their names that differ are put before
    it: `attn.Wo` and `mlp.Wo`, `encoder.W_f1` and `decoder.W_f1`.
    """
    kinds = [kind_of(name) for name in names]
    together: dict[tuple[str, bool], list[int]] = {}
    for i, name in enumerate(names):
        # separate inside and outside the layers: a pooler must not lengthen the names in a layer
        together.setdefault((kinds[i], layer_of(name) is None), []).append(i)
    for (kind, _), members in together.items():
        for i, parts in zip(members, _own_parts([names[i] for i in members]), strict=True):
            kinds[i] = ".".join([*parts, kind])
    return kinds


def _own_parts(names: Sequence[str]) -> list[list[str]]:
    """Return for each name the parts that differ from other names of its layer, if any."""
    layers = [layer_of(name) for name in names]
    paths = [re.sub(r"\.\d+\.", ".*.", name, count=1).split(".") for name in names]
    for depth in count():
        ends = [([""] * depth + path)[len(path) :] for path in paths]  # the last `depth` parts
        if len({(n, *end) for n, end in zip(layers, ends, strict=True)}) == len(names):
            break
    differs = [len(set(column)) > 1 for column in zip(*ends, strict=True)]
    return [[part for part, d in zip(end, differs, strict=True) if part and d] for end in ends]


def layer_of(name: str) -> int | None:
    """Return the number of a module's layer, counted from 0; None: outside the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixReport:
    """One adapted matrix."""

    name: str
    layer: int | None
    kind: str
    in_features: int
    out_features: int
    init_rank: int
    rank: int
    kept: tuple[bool, ...]
    """For each triplet, whether it is kept."""
    scores: tuple[float, ...] | None
    """For each triplet, its score at the step of the saved adapter; None: there are no scores."""
    bits: dict[str, int] | None = None
    """Bit width of each quantized operand, by its name; None: nothing is quantized."""

    @property
    def mean_bits(self) -> float:
        """Mean bit width over the quantized operands."""
        assert self.bits
        return sum(self.bits.values()) / len(self.bits)

    def width_of(self, operands: Iterable[str]) -> float | None:
        """Return the mean width of the quantized operands among these; None: none is quantized."""
        found = [self.bits[name] for name in operands if name in self.bits] if self.bits else []
        return sum(found) / len(found) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """The allocation at one step."""

    step: int
    budget: int
    """Triplets over all matrices."""
    criterion: str | None
    matrices: tuple[MatrixReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the schema's number first; only quantized matrices have `bits`."""
        found = {"schema": SCHEMA, **asdict(self)}
        for matrix in found["matrices"]:
            if matrix["bits"] is None:
                del matrix["bits"]
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any], name: str) -> RankReport:
        """Read back what `to_json` returned.

        Args:
            name: the file's name, for messages.
        Raises:
            RunDirError: the schema is another, keys are missing or superfluous, or values do not
                fit together.
        """
        if value.get("schema") != SCHEMA:
            raise RunDirError(f"{name}: rank report of schema {value.get('schema')}, not {SCHEMA}")
        try:
            rest = {k: v for k, v in value.items() if k not in ("schema", "matrices")}
            matrices = tuple(
                MatrixReport(
                    **{
                        **m,
                        "kept": tuple(m["kept"]),
                        "scores": None if m["scores"] is None else tuple(m["scores"]),
                    }
                )
                for m in value["matrices"]
            )
            report = cls(matrices=matrices, **rest)
        except (TypeError, KeyError) as error:
            raise RunDirError(f"{name} is corrupt: {error}") from error
        wrong = [m.name for m in matrices if not _is_whole(m)]
        if wrong:
            raise RunDirError(f"{name} is corrupt: the values of {wrong[0]} do not fit together")
        if not _are((report.step, report.budget), int):
            raise RunDirError(f"{name} is corrupt: step and budget are not whole numbers")
        if not isinstance(report.criterion, str | None):
            raise RunDirError(f"{name} is corrupt: criterion is no name")
        return report


def _is_whole(matrix: MatrixReport) -> bool:
    """Return whether the values have the right types and agree with each other."""
    sizes = (matrix.in_features, matrix.out_features, matrix.init_rank, matrix.rank)
    scores = (0.0,) * len(matrix.kept) if matrix.scores is None else matrix.scores
    return (
        _are((matrix.name, matrix.kind), str)
        and _are((0 if matrix.layer is None else matrix.layer, *sizes), int)
        and _are(matrix.kept, bool)
        and (len(matrix.kept), sum(matrix.kept)) == (matrix.init_rank, matrix.rank)
        and _are(scores, (int, float))
        and len(scores) == matrix.init_rank
        and all(abs(score) <= LARGEST_SCORE for score in scores)  # this refuses NaN, too
        and (matrix.bits is None or _are_widths(matrix.bits))
    )


def _are_widths(bits: object) -> bool:
    return (
        isinstance(bits, dict)
        and bool(bits)
        and _are(bits.values(), int)
        and all(1 <= width <= FLOAT_BITS for width in bits.values())
    )


def _are(values: Iterable[object], kind: type | tuple[type, ...]) -> bool:
    return all(isinstance(value, kind) for value in values)
