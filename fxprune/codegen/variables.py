"""Names for the values of a graph: a value takes over the variable of the input that dies where it is made.

A *chain* is what is written to one variable, one value after the other: `x = self.conv1(x)`, `x = self.bn1(x)`. The
first chain is the network's input; a branch begins a new one, and where branches merge the oldest goes on. Chains that
end in a wide merge are named after the module that they run through (`branch1x1`), others are y and z.
"""

from __future__ import annotations

import builtins
import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxprune.codegen.expressions import is_name

_RESERVED = {"self", "torch", "F", "operator", "math", "Tensor", "nn", *dir(builtins)}
_SHORT = ("y", "z")
_ROLES: dict[object, tuple[str, ...]] = {torch.nn.functional.scaled_dot_product_attention: ("query", "key", "value")}
_Parts = dict[fx.Node, list["fx.Node | None"]]


@dataclass(eq=False)
class Chain:
    """Values that share a variable.

    first, last: the statements between which the variable is in use.
    origin: the chain that this one was split from.
    merge: how many chains end in the statement in which this one ends.
    role: what the function that it ends in calls it, if it calls its arguments by names of their own.
    """

    first: int
    last: int
    nodes: list[fx.Node] = field(default_factory=list)
    origin: Chain | None = None
    merge: int = 1
    role: str = ""
    name: str = ""


@dataclass(frozen=True)
class Variables:
    """How the statements of a graph are written.

    statements: the nodes that have a line of their own, in order.
    names: the variable of each value that has one; what has none is written where it is used.
    unpacked: the variables that a call with several results is unpacked to.
    dead: the variables that a statement leaves behind, where these are several.
    """

    statements: tuple[fx.Node, ...]
    names: dict[fx.Node, str]
    unpacked: dict[fx.Node, tuple[str, ...]]
    dead: dict[fx.Node, tuple[str, ...]]


def module_paths(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """For each call the path of the innermost module around it that holds others; "" is the root."""
    targets = [str(node.target).split(".") for node in nodes if node.op == "call_module"]
    holders = {tuple(target[:depth]) for target in targets for depth in range(len(target))}
    paths = {}
    for node in nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
        atoms = str(node.target).split(".")[:-1] if node.op == "call_module" else path.split(".")
        while atoms and tuple(atoms) not in holders:
            atoms = atoms[:-1]
        paths[node] = ".".join(atoms)
    return paths


def name_variables(nodes: Sequence[fx.Node]) -> Variables:
    """Names for all values of a graph, given its nodes in order."""
    parts = {node: part for node in nodes if (part := _parts(node))}
    taken_apart = {item for part in parts.values() for item in part if item is not None}
    statements = tuple(node for node in nodes if _has_statement(node) and node not in taken_apart)
    results = {node: list(_leaves(node, parts)) for node in parts if node not in taken_apart}
    chains, ends = _chains(statements, results)
    names = {node: chain.name for chain in chains for node in chain.nodes}
    unpacked = {node: tuple(_unpacked(item, parts, names) for item in parts[node]) for node in results}
    dead = {}
    for position, node in enumerate(statements):
        written = {names.get(item) for item in [node, *results.get(node, ())]}
        left = [chain.name for chain in ends.get(position, ()) if chain.name not in written]
        if len(left) > 1 and node.op != "output":
            dead[node] = tuple(left)
    return Variables(statements, names, unpacked, dead)


def _has_statement(node: fx.Node) -> bool:
    """All but parameters and devices, which are read where they are used, and sizes that are used once."""
    if node.op == "get_attr" or isinstance(node.meta.get("val"), torch.device):
        return False
    is_size = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat)) and node.op != "placeholder"
    return not (is_size and len(node.users) == 1)


def _parts(node: fx.Node) -> list[fx.Node | None]:
    """The results of a call by position, where all its users only pick one; None for those that nobody picks."""
    value = node.meta.get("val")
    users = list(node.users)
    picks = [user.args[1] for user in users if user.target is operator.getitem and user.args[0] is node]
    if not isinstance(value, (list, tuple)) or len(value) < 2 or node.op == "placeholder":
        return []
    if len(picks) != len(users) or len(set(map(str, picks))) != len(users):
        return []
    by_position = dict(zip(picks, users, strict=True))
    return [by_position.get(position) for position in range(len(value))] if by_position else []


def _leaves(node: fx.Node, parts: _Parts) -> Iterator[fx.Node]:
    """The results of a call that is unpacked, those of inner tuples included."""
    for item in parts[node]:
        if item in parts:
            yield from _leaves(item, parts)
        elif item is not None:
            yield item


def _unpacked(item: fx.Node | None, parts: _Parts, names: Mapping[fx.Node, str]) -> str:
    """What a result is written to: a name, `_` where nobody reads it, `(a, b)` for an inner tuple."""
    if item is None:
        return "_"
    return f"({', '.join(_unpacked(part, parts, names) for part in parts[item])})" if item in parts else names[item]


def _read(node: fx.Node, variables: set[fx.Node]) -> Iterator[fx.Node]:
    """The variables that the statement of `node` reads, also through what is written in place."""
    for argument in node.all_input_nodes:
        if argument in variables:
            yield argument
        else:
            yield from _read(argument, variables)


def _chains(
    statements: Sequence[fx.Node], results: Mapping[fx.Node, list[fx.Node]]
) -> tuple[list[Chain], dict[int, list[Chain]]]:
    """All chains with their names, and those that end at each statement."""
    variables = {*statements, *(item for items in results.values() for item in items)}
    reads = [list(dict.fromkeys(_read(node, variables))) for node in statements]
    last = {value: position for position, values in enumerate(reads) for value in values}
    chains: list[Chain] = []
    chain_of: dict[fx.Node, Chain] = {}
    ends: dict[int, list[Chain]] = {}
    for position, node in enumerate(statements):
        dying = [chain_of[value] for value in reads[position] if last[value] == position]
        heir = None if node in results else _heir(node, dying, position, chains)
        roles = dict(zip(node.args, _ROLES.get(node.target, ()), strict=False))
        made = results.get(node, [node])
        for chain in dying:
            chain.merge, chain.role = len(dying), roles.get(chain.nodes[-1], "")
        ends[position] = [chain for chain in dying if chain is not heir]
        for value in [] if node.op == "output" else made:
            origin = dying[0] if node in results and dying else None
            chain = heir or Chain(position, position, origin=origin)
            if heir is None:
                chains.append(chain)
            chain.nodes.append(value)
            chain.last = max(chain.last, last.get(value, position))
            chain_of[value] = chain
    _name(chains, module_paths([node for chain in chains for node in chain.nodes]))
    return chains, ends


def _heir(node: fx.Node, dying: Sequence[Chain], position: int, chains: Sequence[Chain]) -> Chain | None:
    """The chain that goes on with the value of `node`: of those that die here, or that these were split from, once
    nothing else of it is in use."""
    if node.op in {"placeholder", "output"} or not isinstance(node.meta.get("val"), Tensor):
        return None
    origins = [chain.origin for chain in dying if chain.origin is not None and chain.origin.last <= position]
    if origins:
        in_use = {chain.origin for chain in chains if chain.last > position}
        origins = [origin for origin in origins if origin not in in_use]
    tensors = [chain for chain in dying if isinstance(chain.nodes[-1].meta.get("val"), Tensor)]
    return min([*origins, *tensors], key=lambda chain: chain.first, default=None)


def _name(chains: Sequence[Chain], paths: Mapping[fx.Node, str]) -> None:
    """Names every chain, in the order of their beginnings: no two that overlap have the same."""
    for number, chain in enumerate(chains):
        # one that ends where this one begins has been read before this one is written
        taken = {other.name for other in chains[:number] if other.last > chain.first or other.first == chain.first}
        if chain.nodes[0].op == "placeholder":
            chain.name = str(chain.nodes[0].target)  # callers may give it by name
            continue
        chain.name = next(name for name in _candidates(chain, paths) if name not in taken | _RESERVED and is_name(name))


def _candidates(chain: Chain, paths: Mapping[fx.Node, str]) -> Iterator[str]:
    """Names for a chain, best first, without end."""
    node = chain.nodes[0]
    base = "y"
    if chain.role:
        base = chain.role
        yield base
    elif chain.origin is not None:
        base = chain.origin.name
    elif isinstance(node.meta.get("val"), (int, torch.SymInt)):
        base = "batch" if node.target == "size" and node.args[1:] == (0,) else "size"
        yield base
    else:
        path = _common_name([str(item.target) if item.op == "call_module" else paths[item] for item in chain.nodes])
        yield from _SHORT if chain.merge < 3 else ()
        if path:
            yield path
            base = path if chain.merge >= 3 else base
        yield from _SHORT
    separator = "_" if base[-1].isdigit() else ""
    number = 1 if chain.origin is not None and not chain.role else 2
    while True:
        yield f"{base}{separator}{number}"
        number += 1


def _common_name(paths: Sequence[str]) -> str:
    """The name of the module that a branch runs through: `branch1x1`, also for branch3x3_1 and branch3x3_2; or ""."""
    inside = [path.split(".") for path in paths if path]
    common = _shared_beginning(inside)
    below = sorted({atoms[len(common)] for atoms in inside if len(atoms) > len(common)})
    prefix = re.sub(r"_\w?$", "", "".join(_shared_beginning(below)))
    if len(prefix) > 1 and is_name(prefix):
        return prefix
    return next((atom for atom in reversed(common) if is_name(atom)), "")


def _shared_beginning(sequences: Sequence[Sequence[str]]) -> list[str]:
    """The items with which all sequences begin."""
    columns = zip(*sequences, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
