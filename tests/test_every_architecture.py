"""Every architecture for sequence classification that transformers offers, tiny: trained,
evaluated, exported, and each export opened by the code of its card.

The outcomes are the table of docs/backbones.md.
"""

from __future__ import annotations

import warnings

import pytest

from bayeslora_cli.models.backbones.input_limits import PADDING_COUNTS
from tests.support.backbone_trials import ADVICE, FORMATS, MARKS, PAGE, try_kind
from tests.support.tiny_models import KINDS

VARIED = (  # shared layers, an encoder-decoder, characters, experts, linear layers of its own, ...
    "albert", "bart", "bloom", "canine", "deepseek_v3", "falcon", "fnet", "modernbert", "t5", "xlm",
    "xlnet", "zamba",
)  # fmt: skip
REFUSED = {  # and what is said
    "ibert": "has no linear layers to adapt",
    "reformer": "does not take these rows",
    "perceiver": "has no head named",
    "xlnet": "classifies by its last position",
}
PEFT_CANNOT = ("deepseek_v2", "deepseek_v3", "hunyuan_v1_moe", "qwen3_next")
"""PEFT 0.21 takes plain LoRA on shared experts for one on the others."""


@pytest.mark.parametrize(
    "kind", [k if k in VARIED else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_an_architecture(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and PEFT, about a few of them
        # the run's own adapter is one of AdaLoRA
        outcome = try_kind(kind, tmp_path, FORMATS[1:] if kind in VARIED else FORMATS)
    if outcome.absent is not None:
        pytest.skip(outcome.absent)
    if outcome.refused is not None:
        assert kind in REFUSED, outcome.refused
        assert REFUSED[kind] in outcome.refused
        return
    assert not outcome.wrong()
    assert outcome.exports.keys() >= {"adapter", "lora", "merged"}
    assert outcome.effect > 10 * outcome.bound, "the comparison would prove nothing"
    for name, reason in outcome.missing().items():
        assert kind in PEFT_CANNOT
        assert name == "lora"
        assert reason.endswith(ADVICE)
    counts = any("does not hide padding" in line for line in outcome.warned)
    assert counts == (kind in PADDING_COUNTS)
    if not counts:
        assert outcome.padding <= outcome.bound


def test_the_page_has_a_table():
    """Made by the command in its text; another version of transformers may offer others."""
    table = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    listed = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")}
    assert set(VARIED) < listed
