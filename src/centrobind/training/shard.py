"""Large towers on several ranks: each holds a part of every parameter, of its gradient and of its optimizer's state.

FSDP2 (torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv 2304.11277) puts a tower's parameters together where
they are needed, in the forward and in the backward pass, block by block, and leaves each rank the mean over ranks of
its part of the gradient: what Team.average does for whole ones. Hence every rank must call every tower as often as the
others do; the binder calls a tower with nothing in it too, and GradCache makes empty chunks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from centrobind.binder.binder import Binder
from centrobind.distributed import Team

BLOCK = 2**20  # numbers from which a layer of a stack is put together by itself; for smaller ones messages cost more


def shard(binder: Binder, team: Team) -> Binder:
    """A binder like this one, its parameters divided among the ranks; from the binder itself they are gone.

    Until `put_together`: two copies would need more memory than none being divided. All ranks' binders must be equal.
    """
    from torch.distributed.device_mesh import init_device_mesh  # takes a second, and few need it
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(team.device.type, (team.size,))
    towers = {}
    for name, tower in binder.towers.items():
        towers[name] = copy.deepcopy(tower)
        for parameter in tower.parameters():  # tower by tower, so that there is never more than one too many
            parameter.data = parameter.data.new_empty(0)
        # Taken apart again after each pass: a tower that stays whole until its backward pass (torch's default for the
        # outermost module) would be whole together with all the others, and in validation there is no such pass.
        for part in (*_blocks(towers[name]), towers[name]):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return Binder(towers, binder.dim).train(binder.training)


def put_together(binder: Binder, divided: Binder) -> None:
    """Give a binder the whole of what `shard` made of it, on every rank."""
    parts = dict(divided.named_parameters())
    for name, parameter in binder.named_parameters():
        parameter.data = whole(parts[name])
    binder.load_state_dict(dict(divided.named_buffers()), strict=False)


def whole(value: Tensor) -> Tensor:
    """A parameter, or what belongs to one, put together from all ranks; what is not divided, as it is."""
    return value.full_tensor().detach() if is_divided(value) else value.detach()


def for_leader(tensors: Mapping[str, Tensor], team: Team) -> dict[str, Tensor]:
    """Whole tensors in the leader's main memory, one after the other, and nothing on the other ranks."""
    found = {}
    for name, value in tensors.items():
        made = whole(value)
        if team.leads:
            found[name] = made.cpu() if is_divided(value) else made
    return found


def part_of(value: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor that every rank has, divided as `like` is."""
    if like is None or not is_divided(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    if value.shape != like.shape:
        raise ValueError(f"expected a tensor of shape {tuple(like.shape)}, got {tuple(value.shape)}")
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """load_state_dict, of whole tensors that every rank has, into a module that may be divided."""
    there = module.state_dict()
    module.load_state_dict({name: part_of(value, there.get(name)) for name, value in tensors.items()})


def clip(parameters: Iterable[nn.Parameter], longest: float) -> Tensor:
    """Shorten the gradient of all parameters together to a length, and return the length that it had, ().

    torch's own clip_grad_norm_, which does not take divided gradients and whole ones at once.
    """
    trained = [value for value in parameters if value.grad is not None]
    kinds = [[v for v in trained if is_divided(v)], [v for v in trained if not is_divided(v)]]
    norms = [whole(nn.utils.get_total_norm([value.grad for value in kind])) for kind in kinds if kind]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, longest, norm)
    return norm


def is_divided(value: Tensor) -> bool:
    """Whether a rank has only a part of it."""
    return hasattr(value, "full_tensor")  # a DTensor, whose module takes a second to import


def _blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The large layers of the outermost stacks in a tower."""
    for part in tower.children():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            yield from (layer for layer in part if sum(value.numel() for value in layer.parameters()) >= BLOCK)
        else:
            yield from _blocks(part)
