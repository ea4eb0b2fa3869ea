"""What do the rivals of `quasi.py` reach that learn nothing, some of them with images at the time of the edit?"""

from __future__ import annotations

from collections.abc import Sequence

import quasi_forms as forms
import torch
from quasi_jobs import BITS, PRUNING_SIZE, ROUNDING_SIZE, ROUNDS, Data, Measures, barrier, halves
from quasi_reader import DESCENT_SIZE, DESCENT_STEPS, Reader, balanced
from quasi_zoo import State, activations, divergences, kl, outputs
from torch import Tensor

from metanet.nn.frames import Motion
from metanet.nn.quasi_refine import GaugeDescent, GaugeSearch


def rivals(job: str, data: Data, seed: int) -> dict[str, Measures]:
    """By name: gauges in closed form, then the jobs' own tools without learning, on noise and on images."""
    raw = data.unseen(raw=True)
    gauges = {
        "raw": raw,
        "unit": forms.unit_gauge(raw),
        "balanced": balanced(raw, data.spec),
        "equalised": forms.equalised(raw),
    }
    inputs = {"noise": data.start, "512 images": data.images[:512]}
    reader = Reader(data.spec, "quasi", data.start, seed)
    with torch.no_grad():
        return {"merge": _merging, "quantise": _rounding, "prune": _pruning}[job](data, gauges, inputs, reader)


def _merging(data: Data, gauges: dict[str, State], inputs: dict[str, Tensor], reader: Reader) -> dict[str, Measures]:
    found: dict[str, Measures] = {}
    for name, states in gauges.items():
        a, b = halves(states)
        order = forms.match_weights(a, b, 4, torch.Generator().manual_seed(0))
        middle = forms.averaged(a, forms.permuted(b, *order))
        found[name] = {"merge": {"barrier": barrier(middle, a, b, data)}}
    a, b = halves(gauges["balanced"])
    for name, x in inputs.items():
        order = forms.match_answers(a, b, activations(a, x), activations(b, x))
        matched = forms.permuted(b, *order)
        found[f"matched on {name}"] = {"merge": {"barrier": barrier(forms.averaged(a, matched), a, b, data)}}
        ends = outputs(a, x), outputs(matched, x)

        def middle_of(alphas: Sequence[Motion], b: State = matched) -> State:
            logs = reader.logs(alphas[0])
            return forms.averaged(forms.scaled(a, *logs), forms.scaled(b, *(-log for log in logs)))

        def loss(alphas: Sequence[Motion], x: Tensor = x, ends: tuple[Tensor, Tensor] = ends) -> Tensor:
            logits = outputs(middle_of(alphas), x)  # used at once
            return kl(ends[0], logits) + kl(ends[1], logits)

        start = [reader.motion([torch.zeros_like(a[1]), torch.zeros_like(a[3])])]
        middle = middle_of(GaugeDescent(DESCENT_STEPS, DESCENT_SIZE)(start, loss))
        found[f"matched on {name}, steps"] = {"merge": {"barrier": barrier(middle, a, b, data)}}
    return found


def _rounding(data: Data, gauges: dict[str, State], inputs: dict[str, Tensor], reader: Reader) -> dict[str, Measures]:
    raw = gauges["raw"]
    found = {
        name: {
            case: {"kl": float(divergences(raw, forms.quantised(states, bits), data.test).mean())}
            for case, bits in BITS.items()
        }
        for name, states in gauges.items()
    }
    states = gauges["equalised"]
    start = [reader.motion([torch.zeros_like(states[1]), torch.zeros_like(states[3])])]
    for name, x in inputs.items():
        logits = outputs(states, x)
        cases: Measures = {}
        for case, bits in BITS.items():

            def edit(alphas: Sequence[Motion], bits: int = bits) -> State:
                return forms.quantised(forms.scaled(states, *reader.logs(alphas[0])), bits)

            def loss(alphas: Sequence[Motion], x: Tensor = x, logits: Tensor = logits) -> Tensor:
                return kl(logits, outputs(edit(alphas), x))  # used at once

            best = GaugeSearch(ROUNDS, ROUNDING_SIZE / (2 ** (bits - 1) - 1))(start, loss)
            cases[case] = {"kl": float(divergences(raw, edit(best), data.test).mean())}
        found[f"equalised, searched on {name}"] = cases
    return found


def _pruning(data: Data, gauges: dict[str, State], inputs: dict[str, Tensor], reader: Reader) -> dict[str, Measures]:
    raw = gauges["raw"]

    def told(after: State) -> Measures:
        return {"prune50": {"kl": float(divergences(raw, after, data.test).mean())}}

    found = {
        "magnitude" if name == "raw" else name: told(forms.pruned(states, [states[n].abs() for n in (0, 2, 4)]))
        for name, states in gauges.items()
    }
    states = gauges["balanced"]
    for name, x in inputs.items():
        found[f"score on {name}"] = told(forms.pruned(states, forms.saliencies(states, activations(states, x), x)))
    x = inputs["noise"]
    logits = outputs(states, x)

    def edit(alphas: Sequence[Motion]) -> State:
        moved = forms.scaled(states, *reader.logs(alphas[0]))
        return forms.pruned(moved, [moved[n].abs() for n in (0, 2, 4)])

    start = [reader.motion([torch.zeros_like(states[1]), torch.zeros_like(states[3])])]
    best = GaugeSearch(ROUNDS, PRUNING_SIZE)(start, lambda alphas: kl(logits, outputs(edit(alphas), x)))
    found["balanced, searched on noise"] = told(edit(best))
    return found
