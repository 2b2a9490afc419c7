"""Adam by torch's functional form: the class costs each process seconds of imports and each step twice the time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, and every framework's default
MOMENTS = ("step", "mean", "square")


class Adam:
    """Adam with a constant learning rate, and L2 regularisation of the weights as part of the gradient.

    l2·w is added to the gradient of every parameter with more than one axis, so not to biases and normalisation: the
    penalty is l2/2·|w|², as in torch; a factor of Keras' `l2`, whose penalty is l2·|w|², is half as large.
    """

    def __init__(self, network: nn.Module, learning_rate: float, l2: float) -> None:
        self.learning_rate = learning_rate
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        weights = [i for i, p in enumerate(self.parameters) if p.ndim > 1]
        others = [i for i, p in enumerate(self.parameters) if p.ndim <= 1]
        self.groups = ((weights, l2), (others, 0.0))

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for rows, decay in self.groups:
            adam(
                [self.parameters[i] for i in rows],
                [_gradient(self.parameters[i]) for i in rows],
                [self.means[i] for i in rows],
                [self.squares[i] for i in rows],
                [],
                [self.steps[i] for i in rows],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=BETA1,
                beta2=BETA2,
                eps=EPSILON,
                lr=self.learning_rate,
                weight_decay=decay,
            )

    def state(self) -> dict[str, Tensor]:
        """All moments by name."""
        tensors = zip(self.names, self.steps, self.means, self.squares, strict=True)
        return {f"{name}.{moment}": t for name, *group in tensors for moment, t in zip(MOMENTS, group, strict=True)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Copies in place: the fused step needs weights and moments in one layout."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
