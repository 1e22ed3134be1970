"""The modules of a lifted graph: real ones where calls were lifted, containers above, every tensor in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, fx, nn

_DICT_ATTRIBUTES = set(dir(nn.ModuleDict))


@dataclass
class Branch:
    """One module to be.

    tensors: its own parameters and buffers, by attribute.
    below: the modules in it.
    module: the lifted module, where it is one.
    last_called: which of the modules in it was placed last.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    below: dict[str, Branch] = field(default_factory=dict)
    module: nn.Module | None = None
    last_called: str = ""

    def at(self, path: str) -> Branch:
        """The branch at a dotted path, grown where it is missing."""
        branch = self
        for atom in path.split(".") if path else ():
            branch = branch.below.setdefault(atom, Branch())
        return branch


def named_tensors(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Every parameter, buffer and constant of `gm` by its dotted name; a tied one under each of its names."""
    tensors: dict[str, Tensor] = {}
    for path, module in gm.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers, **vars(module)}
        tensors |= {f"{path}.{name}".lstrip("."): item for name, item in own.items() if isinstance(item, Tensor)}
    return tensors


def install(gm: fx.GraphModule, order: Iterable[str], lifted: Mapping[str, nn.Module], called: Sequence[str]) -> None:
    """Replaces all modules of `gm`, in place.

    order: names of parameters and buffers as in the original's state_dict; a tensor that is not among them becomes
        a buffer that is not saved.
    lifted: the new modules by path. They take the very tensors that are there now.
    called: the paths of the calls in the order of execution, which gives parameter-free modules their place.
    """
    tensors = named_tensors(gm)
    saved = [name for name in order if name in tensors]
    graphs = {name: module for name, module in gm.named_children() if isinstance(module, fx.GraphModule)}
    root = Branch()
    for name in dict.fromkeys([*saved, *tensors]):
        path, _, leaf = name.rpartition(".")
        root.at(path).tensors[leaf] = tensors[name]
    for path in called:
        _place(root, path)
    for path, module in lifted.items():
        root.at(path).module = module
    _share(root, {_signature(root.at(path)): module for path, module in lifted.items() if root.at(path).tensors})
    for name in [name for name, item in vars(gm).items() if isinstance(item, Tensor)]:
        del gm.__dict__[name]
    for slots in (gm._parameters, gm._buffers, gm._modules):
        slots.clear()
    gm._non_persistent_buffers_set.clear()
    _fill(gm, root, "", set(saved))
    for name, graph in graphs.items():
        gm.add_module(name, graph)
    gm._register_deepcopy_hook(partial(_restore, type(gm).__name__, frozenset(gm._non_persistent_buffers_set)))


def _restore(name: str, unsaved: frozenset[str], copied: fx.GraphModule) -> None:
    """What a GraphModule forgets when it is copied: its name, and which buffers are not saved."""
    type(copied).__name__ = name
    copied._non_persistent_buffers_set.update(unsaved)


def _place(root: Branch, path: str) -> None:
    """Grows the branches of a called module, each behind the sibling that was called last or in numeric order."""
    branch = root
    for atom in path.split("."):
        if atom not in branch.below:
            names = list(branch.below)
            names.insert(names.index(branch.last_called) + 1 if branch.last_called else 0, atom)
            branch.below[atom] = Branch()
            branch.below = {name: branch.below[name] for name in names}
        branch.last_called = atom
        branch = branch.below[atom]


def _signature(branch: Branch) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((leaf, id(tensor)) for leaf, tensor in branch.tensors.items()))


def _share(branch: Branch, owners: Mapping[tuple[tuple[str, int], ...], nn.Module]) -> None:
    """A module that the original holds under several names is one module here, too."""
    if branch.module is None and branch.tensors and not branch.below:
        branch.module = owners.get(_signature(branch))
    for child in branch.below.values():
        _share(child, owners)


def _fill(module: nn.Module, branch: Branch, path: str, saved: set[str]) -> None:
    """Puts tensors and modules of a branch into its module."""
    for leaf, tensor in branch.tensors.items():
        if isinstance(tensor, nn.Parameter):
            setattr(module, leaf, tensor)  # recurrent modules keep a list of their parameters, too
        else:
            module._buffers.pop(leaf, None)
            module.register_buffer(leaf, tensor, persistent=f"{path}{leaf}" in saved)
    for name in _ordered(branch):
        child = branch.below[name]
        built = child.module or _container(child)
        _fill(built, child, f"{path}{name}.", saved)
        if isinstance(module, nn.ModuleList):
            module.append(built)
        else:
            module.add_module(name, built)


def _ordered(branch: Branch) -> list[str]:
    """The names of the modules in a branch: numbers in their order, unless the original's tensors say otherwise."""
    names = list(branch.below)
    if not all(name.isdigit() for name in names):
        return names
    full = [int(name) for name in names if branch.below[name].tensors or branch.below[name].below]
    return sorted(names, key=int) if full == sorted(full) else names


def _container(branch: Branch) -> nn.Module:
    """The module that only holds others: a list or dict where their names are no attributes that Python can write."""
    names = _ordered(branch)
    if branch.tensors or all(name.isidentifier() for name in names):
        return nn.Module()
    if names == [str(number) for number in range(len(names))]:
        return nn.ModuleList()
    return nn.Module() if _DICT_ATTRIBUTES & set(names) else nn.ModuleDict()
