"""What do networks answer to inputs that a metanetwork has learned to ask, with every operation of theirs as it is?

The operations come from :class:`metanet.graph.Program`: strides, residuals, norms, attention and recurrence are run,
not imitated. After every activation the probes are mixed, ``h + M h`` over the axis of the probes: at the start M is
zero and the networks simply run, training moves away from there. M is linear, has no bias and is the same for all
units, so it commutes with permutations, with positive scalings behind a ReLU, with signs and phases behind tanh and
sin, and with the matrices of attention heads: the answers are invariant under the whole group, without a frame.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from metanet.errors import ModelError
from metanet.graph import Bucket, GraphBatch, InputForm
from metanet.graph.encoding import cosine_basis
from metanet.graph.program import Program
from metanet.nn.dense import Dense, Table
from metanet.nn.readers import Reader, make_reader

__all__ = ["Responses", "first_probes"]

_DEPTHS = 16  # activations whose mix is told apart; later ones share the last
_FITTED = 256  # networks by which the answers are standardised


class Responses(nn.Module):
    """Features of whole networks from their answers to learned probes.

    Probes exist for the inputs that were seen by :meth:`prepare`: one table for each number of input values, so that
    the same image reaches a network as pixels or as rows. Another input is refused.

    Args:
        probes: how many inputs every network is asked.
        width: number of features.
        rank: rank of the mix of the probes behind each activation; 0 for none.

    Shapes:
        a bucket of B networks -> ``(B, width)``.
    """

    seed: Tensor

    def __init__(self, probes: int, width: int, rank: int = 0) -> None:
        super().__init__()
        self.probes, self.features, self.rank = probes, width, rank
        self.tables = nn.ParameterDict()
        self.readers = nn.ModuleDict()
        self.read = Table(_DEPTHS, max(rank, 1), probes, scale=probes**-0.5)
        self.write = Table(_DEPTHS, probes, max(rank, 1), scale=0.0)
        if not rank:
            self.read.requires_grad_(False)
            self.write.requires_grad_(False)
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew; probes and readers are drawn when their inputs are met."""
        self.seed.fill_(int(torch.randint(2**31, (), generator=generator)))
        self.read.reset_parameters(generator)
        self.write.reset_parameters(generator)
        for key in list(self.tables):
            del self.tables[key]
        self.readers.clear()

    @torch.no_grad()
    def prepare(self, batch: GraphBatch) -> None:
        """Make probes for the inputs of these networks, and standardise answers by theirs; call it before training.

        Raises:
            ModelError: for networks whose operations are not known.
        """
        found: dict[str, list[Tensor]] = {}
        for bucket in batch:
            for form in _program(bucket).inputs:
                if _key(form) not in self.tables:
                    probes = first_probes(form, self.probes, self._generator(_key(form))).to(self.read.weight)
                    self.tables[_key(form)] = nn.Parameter(probes)
            rows = torch.arange(min(len(bucket), _FITTED), device=bucket.index.device)
            part = bucket.select(rows, rows)
            answer = self.answers(part)
            found.setdefault(self._reader_of(part, answer), []).append(answer.flatten())
        for key, answers in found.items():
            self._add(key).fit(torch.cat(answers))

    def _reader_of(self, bucket: Bucket, answer: Tensor) -> str:
        forms = _program(bucket).inputs
        side = math.isqrt(self.probes)
        grid = len(forms) == 1 and forms[0].shape == (2,) and side * side == self.probes and side >= 4
        return f"{'grid' if grid else 'flat'}_{answer.shape[-1]}"

    def _add(self, key: str) -> Reader:
        if key not in self.readers:
            reader = make_reader(key, self.probes, self.features)
            generator = self._generator(key)
            for module in reader.modules():
                if isinstance(module, Dense | Table):
                    module.reset_parameters(generator)
            self.readers[key] = reader.to(self.read.weight)
        found = self.readers[key]
        if not isinstance(found, Reader):
            raise ModelError(f"{type(found).__name__} stands at {key!r}, expected a reader")
        return found

    def _generator(self, key: str) -> torch.Generator:
        # Which architectures come first must not matter: every table has a stream of its own.
        return torch.Generator().manual_seed(int(self.seed) ^ zlib.crc32(key.encode()))

    def answers(self, bucket: Bucket) -> Tensor:
        """The answers of every network to every probe, all outputs behind each other.

        Shapes:
            returns ``(B, probes, outputs)``.

        Raises:
            ModelError: for networks whose operations are not known, or with inputs that there are no probes for.
        """
        program = _program(bucket)
        inputs = []
        for form in program.inputs:
            if _key(form) not in self.tables:
                known = ", ".join(self.tables) or "none"
                raise ModelError(
                    f"there are no probes for inputs of shape {form}, only for {known} values",
                    hint="train on networks with such inputs: fit_statistics makes probes for what it is given",
                )
            inputs.append(self.tables[_key(form)].reshape(self.probes, *form.shape))
        outputs = program.run(bucket.state(), inputs, self._mixed if self.rank else None)
        return torch.cat([output.reshape(len(bucket), self.probes, -1) for output in outputs], dim=-1)

    def _mixed(self, rank: int, x: Tensor) -> Tensor:
        depth = min(rank, _DEPTHS - 1)
        return x + linear(linear(x, self.read.weight[depth]), self.write.weight[depth])

    def forward(self, bucket: Bucket) -> Tensor:
        """See the class."""
        answer = self.answers(bucket)
        key = self._reader_of(bucket, answer)
        if key not in self.readers:
            known = ", ".join(name.partition("_")[2] for name in self.readers)
            raise ModelError(
                f"the networks give {answer.shape[-1]} outputs, this model has learned to read {known or 'none'}",
                hint="train on networks with as many outputs",
            )
        features: Tensor = gelu(self.readers[key](answer))
        return features

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Probes and readers follow from what a model was trained on: a trained model brings its own.
        for name, value in state_dict.items():
            part, _, key = name.removeprefix(prefix).partition(".")
            if not name.startswith(prefix):
                continue
            if part == "tables" and key not in self.tables:
                self.tables[key] = nn.Parameter(torch.zeros_like(value))
            elif part == "readers":
                self._add(key.partition(".")[0])
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"probes={self.probes}, rank={self.rank}"


def _program(bucket: Bucket) -> Program:
    if bucket.program is None:
        raise ModelError(
            "responses need the operations of the networks, and the graphs hold none",
            hint="ParameterGraph.build(spec, state, program=program_of(architecture))",
        )
    return bucket.program


def _key(form: InputForm) -> str:
    size = str(math.prod(form.shape))
    return size if form.vocabulary is None else f"{size}of{form.vocabulary}"


def first_probes(form: InputForm, probes: int, generator: torch.Generator) -> Tensor:
    """Where the probes start.

    Two or fewer values are coordinates: a grid over ``[-1, 1]``, scattered points where no grid has this number. Token
    ids start as single words. Everything else starts at unit size, the first half smooth along the last axes (a square
    number of values is taken for an image), the second half white.

    Shapes:
        returns ``(probes, values)``.
    """
    size = math.prod(form.shape)
    if form.vocabulary is not None:
        words = torch.randint(form.vocabulary, (probes, size // form.vocabulary), generator=generator)
        return nn.functional.one_hot(words, form.vocabulary).flatten(1).float()
    if size <= 2:
        side = round(probes ** (1 / size))
        if side**size != probes:
            return 2 * torch.rand(probes, size, generator=generator) - 1
        axis = torch.linspace(-1, 1, side)
        return torch.stack(torch.meshgrid(*[axis] * size, indexing="ij"), dim=-1).reshape(probes, size)
    shape = form.shape[-2:] if len(form.shape) > 2 else form.shape
    side = math.isqrt(size)
    if len(form.shape) == 1 and side * side == size:
        shape = (side, side)
    inner = math.prod(shape)
    basis = cosine_basis(shape, max(inner // 6, min(inner, 3))).float()
    smooth = torch.randn(probes, size // inner, basis.shape[1], generator=generator) @ basis.T
    white = torch.randn(probes, size, generator=generator)
    both = torch.where(torch.arange(probes)[:, None] < probes // 2, smooth.reshape(probes, size), white)
    return both / (both.square().mean(1, keepdim=True) + 1e-12).sqrt()
