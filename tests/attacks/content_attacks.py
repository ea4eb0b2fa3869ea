"""Readable torch files whose content is no state dict, or no chain of linear layers."""

from __future__ import annotations

import torch

from .attack import Attack, agent, pt
from .pickles import agent_state, agent_zip, dictionary, state, tensor_ops, torch_bytes, torch_zip

CONTENT = (
    Attack("not_a_dictionary", pt(lambda: torch_bytes(torch.zeros(3))), "does not hold a dictionary"),
    Attack("empty_dictionary", pt(lambda: torch_bytes({})), "an empty state dict"),
    Attack("number_among_tensors", pt(lambda: torch_bytes({**state(), "epoch": 3})), "is a int and no tensor", "epoch"),
    Attack("list_of_tensors", pt(lambda: torch_bytes({"w": [torch.zeros(3)]})), "is a list and no tensor", "w"),
    Attack("unknown_nesting", pt(lambda: torch_bytes({"mine": state()})), "is a dictionary and no tensor", "mine"),
    Attack(
        "wrong_key",
        pt(lambda: torch_bytes({"mine": state()})),
        "no dictionary under the key 'yours'",
        options={"key": "yours"},
    ),
    Attack("integer_name", pt(lambda: torch_bytes({3: torch.zeros(3)})), "a tensor is named by a int"),
    Attack("name_with_escape", pt(lambda: torch_bytes({"w\n\x1b[31m": torch.zeros(3)})), "not printable", "w\\n"),
    Attack("endless_name", pt(lambda: torch_bytes({"w" * 5000: torch.zeros(3)})), "5000 characters", "www"),
    Attack(
        "name_twice",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((4,), 4)), ("w", tensor_ops((4,), 4))), {"0": bytes(16)})),
        "the name 'w' comes twice",
    ),
    Attack("sparse_tensor", pt(lambda: torch_bytes({"w": torch.zeros(3).to_sparse()})), "_rebuild_sparse_tensor"),
    Attack(
        "convolution",
        pt(lambda: torch_bytes({"c.weight": torch.zeros(2, 1, 3, 3)})),
        "there is no linear layer",
        "c.weight",
        early=False,
    ),
    Attack(
        "norm_between",
        pt(lambda: torch_bytes({**state(), "1.weight": torch.zeros(4)})),
        "only chains of linear layers",
        "1.weight",
        early=False,
        options={"activation": "relu"},
    ),
    Attack(
        "sizes_do_not_chain",
        pt(lambda: torch_bytes({**state(), "2.weight": torch.zeros(2, 5)})),
        "it reads 5 units, but '0' writes 4",
        "2.weight",
        early=False,
        options={"activation": "relu"},
    ),
    Attack("no_activation", pt(lambda: torch_bytes(state())), "does not say which function", early=False),
    Attack(
        "unknown_activation",
        pt(lambda: torch_bytes(state())),
        "activation 'step' is not known",
        early=False,
        options={"activation": "step"},
    ),
    Attack(
        "reserved_name",
        pt(lambda: torch_bytes({"train.0.weight": torch.zeros(2, 2)})),
        "cannot be the name of a part of a module",
        early=False,
        options={"activation": "relu"},
    ),
    Attack(
        "agent_with_convolution",
        agent(
            lambda: agent_zip(
                torch_bytes({"features_extractor.cnn.0.weight": torch.zeros(8, 1, 4, 4), **agent_state()})
            )
        ),
        "only chains of linear layers",
        "features_extractor.cnn.0.weight",
        early=False,
    ),
)
