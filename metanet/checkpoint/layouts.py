"""Which chains do the agents of Stable-Baselines3 consist of?

Data, not code: read from the sources of stable-baselines3 (``common/policies.py``, ``sac/policies.py``,
``td3/policies.py``, ``dqn/policies.py``) and sb3-contrib (``ars/policies.py``, ``tqc/policies.py``,
``qrdqn/policies.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LAYOUTS", "Layout", "Part"]


@dataclass(frozen=True)
class Part:
    """One chain of a layout.

    Args:
        name: of the chain.
        prefixes: of its layers, in order; ``#`` stands for a number, one chain for each.
        reads: what it may read, the first one that exists; the last is an input.
        hidden: whether its last layer is followed by the activation, because heads read it.
    """

    name: str
    prefixes: tuple[str, ...]
    reads: tuple[str, ...]
    hidden: bool = False


@dataclass(frozen=True)
class Layout:
    """A kind of agent, told by the names of its layers.

    Args:
        name: for people.
        activation: the library's default between layers.
        needs: a layer of each of these must be there.
        parts: its chains, trunks before heads.
        noise: a tensor with one row per unit of what it reads, which weighs them in state-dependent exploration (gSDE);
            the layout is only for agents that have it.
        noise_reads: what it may read, the first one that exists.
        extras: tensors that belong to no chain and may be there.
        note: what the chains leave out of the agent.
    """

    name: str
    activation: str
    needs: tuple[str, ...]
    parts: tuple[Part, ...]
    noise: str = ""
    noise_reads: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    note: str = "outputs are taken before any squashing"

    def fits(self, paths: Iterable[str], matrices: Iterable[str]) -> bool:
        """Whether layers with these paths, and these other tensors with two axes, can be of this layout."""
        listed = list(paths)
        there = all(any(path == need or path.startswith(need + ".") for path in listed) for need in self.needs)
        return there and (not self.noise or self.noise in matrices)


_CRITICS = (
    Part("critic", ("critic.qf#",), ("observation_action",)),
    Part("critic_target", ("critic_target.qf#",), ("observation_action",)),
)

_SHARED = Part("shared", ("mlp_extractor.shared_net",), ("observation",), hidden=True)
_VALUE = Part("value", ("mlp_extractor.value_net", "value_net"), ("shared", "observation"))
_LATENT = Part("policy", ("mlp_extractor.policy_net",), ("shared", "observation"), hidden=True)
_SOFT_ACTOR = (
    Part("actor", ("actor.latent_pi",), ("observation",), hidden=True),
    Part("actor.mu", ("actor.mu",), ("actor", "observation")),
)
_NOISE_NOTE = "outputs are taken before any squashing; the width of the state-dependent noise (gSDE) is an output too"

LAYOUTS = (
    Layout(
        "actor-critic policy (a2c, ppo, trpo) with gSDE",
        "tanh",
        ("action_net", "value_net"),
        (_SHARED, _LATENT, Part("action", ("action_net",), ("policy", "shared", "observation")), _VALUE),
        noise="log_std",
        noise_reads=("policy", "shared", "observation"),
        note=_NOISE_NOTE,
    ),
    Layout(
        "actor-critic policy (a2c, ppo, trpo)",
        "tanh",
        ("action_net", "value_net"),
        (
            _SHARED,
            Part("policy", ("mlp_extractor.policy_net", "action_net"), ("shared", "observation")),
            _VALUE,
        ),
        extras=("log_std",),
        note="outputs are the action's mean (or logits) and the value; log_std does not depend on the state",
    ),
    Layout("ars policy", "relu", ("action_net",), (Part("policy", ("action_net",), ("observation",)),)),
    Layout(
        "soft actor-critic (sac, tqc) with gSDE",
        "relu",
        ("actor.latent_pi", "critic"),
        (*_SOFT_ACTOR, *_CRITICS),
        noise="actor.log_std",
        noise_reads=("actor",),
        extras=("log_ent_coef",),
        note=_NOISE_NOTE,
    ),
    Layout(
        "soft actor-critic (sac, tqc)",
        "relu",
        ("actor.latent_pi", "critic"),
        (
            *_SOFT_ACTOR,
            Part("actor.log_std", ("actor.log_std",), ("actor", "observation")),
            *_CRITICS,
        ),
        extras=("log_ent_coef",),
    ),
    Layout(
        "deterministic actor-critic (td3, ddpg)",
        "relu",
        ("actor.mu", "critic"),
        (
            Part("actor", ("actor.mu",), ("observation",)),
            Part("actor_target", ("actor_target.mu",), ("observation",)),
            *_CRITICS,
        ),
    ),
    Layout(
        "value network (dqn)",
        "relu",
        ("q_net.q_net",),
        (
            Part("q_net", ("q_net.q_net",), ("observation",)),
            Part("q_net_target", ("q_net_target.q_net",), ("observation",)),
        ),
    ),
    Layout(
        "quantile network (qrdqn)",
        "relu",
        ("quantile_net.quantile_net",),
        (
            Part("quantile_net", ("quantile_net.quantile_net",), ("observation",)),
            Part("quantile_net_target", ("quantile_net_target.quantile_net",), ("observation",)),
        ),
    ),
)
