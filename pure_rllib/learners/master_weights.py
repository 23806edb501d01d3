"""Float32 copies of low-precision parameters, and of their gradients."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class MasterWeights:
    """What the optimiser updates: the trainable parameters of a policy, in float32.

    A float32 parameter is its own master. One of a lower precision has a float32 copy,
    because an update at a learning rate of 1e-6 is far below the spacing of bfloat16
    numbers: added to them directly, almost all of it would be rounded away. For the
    same reason its gradient is added to the master's the moment that a backward pass
    has computed it, and then freed: sums over micro-batches and over learners are
    float32, and at no time are there two sets of gradients.

    Args:
        policy: its trainable parameters must not be exchanged for others afterwards.
    """

    def __init__(self, policy: nn.Module):
        self.tensors: list[Tensor] = []
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        self._names: list[str] = []
        for name, parameter in policy.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dtype == torch.float32:
                self.tensors.append(parameter)
                continue
            master = parameter.detach().float().requires_grad_()
            self.tensors.append(master)
            self._copies.append((parameter, master))
            self._names.append(name)
            parameter.register_post_accumulate_grad_hook(_mover(master))

    @property
    def copies(self) -> list[Tensor]:
        """Those that are not themselves parameters: what a checkpoint adds."""
        return [master for _, master in self._copies]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps an optimiser of `tensors` and rounds the result to the policy."""
        optimizer.step()
        for parameter, master in self._copies:
            parameter.copy_(master)

    @torch.no_grad()
    def follow(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what the policy has just loaded, before it was rounded.

        Args:
            state: the tensors that it loaded, by their names in the policy.
        """
        for name, (_, master) in zip(self._names, self._copies, strict=True):
            master.copy_(state[name])

    @torch.no_grad()
    def load(self, copies: Sequence[Tensor]) -> None:
        """Takes over the values of `copies`, as saved, perhaps with another dtype.

        Args:
            copies: none of a float32 policy: its own tensors are what is loaded then,
                see `follow`. Those of a low-precision one go into float32 parameters.
        """
        if copies:
            for master, saved in zip(self.tensors, copies, strict=True):
                master.copy_(saved)


def _mover(master: Tensor) -> Callable[[Tensor], None]:
    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move
