"""B-LoRA's whole training written slowly: eager, float64, a loop over modules, padded rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from bayeslora_cli.methods.blora.gates import MARGIN, SHIFT, THRESHOLD, sampled
from tests.models.kernels.test_quantize import twin


class TwinLinear(nn.Module):
    """blora.md's module for one matrix; `names`: its quantized operands in the bank's order."""

    def __init__(self, base, state, scale, names, ladder):
        super().__init__()
        self.base, self.scale, self.names, self.ladder = base, scale, names, ladder
        self.a, self.e, self.b = (nn.Parameter(state[part].double()) for part in "AEB")
        rank = len(self.a)
        self.bits = nn.Parameter(torch.full((len(names), len(ladder) - 1), 6.0).double())
        self.ranks = nn.Parameter(torch.full((rank - 1,), 6.0).double())
        self.ranges = nn.Parameter(torch.zeros(len(names)).double())
        self.signed = dict.fromkeys(names, True)
        self.gates = None
        """z of each width (q, L - 1) and rank (r - 1,) in this pass; None: the float phase."""
        self.seen = None
        """Largest and smallest x, largest |x A'| and |x A' E|, while ranges are measured."""

    def q(self, name, value):
        if self.gates is None or name not in self.names:
            return value
        place = self.names.index(name)
        beta = self.ranges[place].exp()
        return twin(value, beta, self.signed[name], self.gates[0][place].unbind(), self.ladder)

    def forward(self, x):
        e = self.e[:, 0]
        if self.seen is not None:
            e = torch.where(e == 0, 0.02, e)
            h = x @ self.a.t()
            self.seen = [float(f) for f in (x.max(), x.min(), h.abs().max(), (h * e).abs().max())]
        taken = self.q("x", x)
        h = self.q("a", taken @ self.q("A", self.a).t()) * self.q("E", e)
        if self.gates is not None:
            h = h * torch.cat((torch.ones(1), self.gates[1].cumprod(0))).double()
        weight, into = self.base.weight, x
        if "W" in self.names and self.gates is not None:
            weight, into = self.q("W", weight), taken
        out = F.linear(into, weight, self.base.bias)
        return out + self.scale * self.q("h", h) @ self.q("B", self.b).t()


class TwinTraining:
    """Trains a causal language model by AdamW through B-LoRA's three phases."""

    def __init__(self, path, step, config):
        """`step`: a fresh training step of ours, whose initial values are taken."""
        plan, self.config = step.network.operands.plan, config
        self.names = list(plan.operands)
        module = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float64, attn_implementation="eager"
        )
        self.module = module.requires_grad_(False).train()
        self.layers = {}
        for name, layer in step.network.adapters.items():
            state = {part: getattr(layer, f"lora_{part}").detach().clone() for part in "AEB"}
            owner, _, last = name.rpartition(".")
            own = TwinLinear(
                module.get_submodule(name), state, layer.scale, self.names, plan.ladder
            )
            setattr(module.get_submodule(owner), last, own)
            self.layers[name] = own
        self.noise = torch.Generator().manual_seed(config["seed"])
        groups = {"weights": ("a", "e", "b"), "gates": ("bits", "ranks"), "ranges": ("ranges",)}
        self.adamw = {
            kind: torch.optim.AdamW(
                [getattr(x, n) for x in self.layers.values() for n in names], weight_decay=0.0
            )
            for kind, names in groups.items()
        }

    def loss(self, inputs):
        """The sum over the tokens that count of padded rows."""
        logits = self.module(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits
        found = logits.flatten(0, 1)[inputs["predicting"]]
        return F.cross_entropy(found, inputs["targets"], reduction="sum")

    def draw(self):
        """Gates of a pass: as our step draws them, in fp32."""
        layers, config = list(self.layers.values()), self.config
        shapes = [(len(layers), *layers[0].bits.shape), (len(layers), *layers[0].ranks.shape)]
        kept = [config["blora_mode"] != "rank", config["blora_mode"] != "quant"]
        sizes = [torch.Size(s).numel() if on else 0 for s, on in zip(shapes, kept, strict=True)]
        u = torch.zeros(sum(sizes)).uniform_(MARGIN, 1 - MARGIN, generator=self.noise).double()
        bits, ranks = u.split(sizes)
        for index, layer in enumerate(layers):
            z_bits, z_ranks = torch.ones_like(layer.bits), torch.ones_like(layer.ranks)
            if kept[0]:
                z_bits = sampled(layer.bits, bits.view(shapes[0])[index])
            if kept[1]:
                z_ranks = sampled(layer.ranks, ranks.view(shapes[1])[index])
            layer.gates = z_bits, z_ranks

    def threshold(self):
        for layer in self.layers.values():
            layer.gates = tuple((p > THRESHOLD).double() for p in (layer.bits, layer.ranks))

    @torch.no_grad()
    def calibrate(self, batches):
        """Set the first ranges on a step's rows."""
        for layer in self.layers.values():
            layer.seen = []
        found = []
        for batch in batches:
            self.loss(batch)
            found.append([layer.seen for layer in self.layers.values()])
        for index, layer in enumerate(self.layers.values()):
            top, bottom, a, h = zip(*(at[index] for at in found), strict=True)
            e = torch.where(layer.e == 0, 0.02, layer.e)
            values = {
                "A": layer.a, "B": layer.b, "E": e, "W": layer.base.weight,
                "x": torch.tensor([*top, *bottom]), "a": torch.tensor(a), "h": torch.tensor(h),
            }  # fmt: skip
            for place, name in enumerate(self.names):
                layer.ranges[place] = values[name].abs().max().log()
            if "x" in self.names:
                layer.signed["x"] = min(bottom) < 0
            layer.seen = None

    def penalty(self):
        config, total = self.config, 0.0
        for layer in self.layers.values():
            if config["blora_mode"] != "rank":
                reached = (layer.bits + SHIFT).sigmoid().cumprod(1)
                total = total + config["lambda_quant"] * reached.sum()
            if config["blora_mode"] != "quant":
                kept = (layer.ranks + SHIFT).sigmoid().cumprod(0)
                total = total + config["lambda_rank"] * kept.mean()
        return total

    def step(self, phase, rate, batches):
        """One step on micro-batches of padded rows; returns the loss and the penalty."""
        count = sum(len(batch["targets"]) for batch in batches)
        for optimizer in self.adamw.values():
            optimizer.zero_grad(set_to_none=False)
        task, penalty = 0.0, 0.0
        for batch in batches:
            if phase == "learning":
                self.draw()
            elif phase == "fixed":
                self.threshold()
            loss = self.loss(batch) / count
            more = self.penalty() if phase == "learning" else torch.zeros(())
            share = len(batch["targets"]) / count
            (loss + share * more).backward()
            task, penalty = task + loss.item(), penalty + share * more.item()
        rates = {"weights": rate}
        if phase != "float":
            rates["ranges"] = self.config["range_lr"]
        if phase == "learning":
            rates["gates"] = self.config["gate_lr"]
        for kind, own in rates.items():
            self.adamw[kind].param_groups[0]["lr"] = own
            self.adamw[kind].step()
        return task, penalty
