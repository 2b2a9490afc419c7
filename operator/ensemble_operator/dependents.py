"""Which resources depend on which: a search that has grown wakes the selections that name it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ensemble_operator.queue import Key
from ensemble_operator.world import Ref

ALL = "*"


class Reference(NamedTuple):
    """What a resource depends on; `specification`: on that alone, whatever its status says."""

    ref: Ref
    specification: bool


class Dependents:
    """A hint only: what is not known yet is looked at anyway, at the start and from time to time."""

    def __init__(self) -> None:
        self._references: dict[Key, frozenset[Reference]] = {}
        self._dependents: defaultdict[tuple[str, Reference], set[Key]] = defaultdict(set)

    def replace(self, key: Key, references: Iterable[Ref], specifications: Iterable[Ref] = ()) -> None:
        """From now on the resource depends on these of its namespace, and on no other.

        Args:
            references: A name `*` means all of the kind: of these no status matters.
            specifications: Further ones whose status does not matter.
        """
        known = self._references.get(key, frozenset())
        wanted = {Reference(ref, ref.name == ALL) for ref in references}
        wanted |= {Reference(ref, True) for ref in specifications}
        for reference in wanted - known:
            self._dependents[key.namespace, reference].add(key)
        for reference in known - wanted:
            place = (key.namespace, reference)
            self._dependents[place].discard(key)
            if not self._dependents[place]:
                del self._dependents[place]
        self._references.pop(key, None)
        if wanted:
            self._references[key] = frozenset(wanted)

    def of(self, key: Key, wide: bool) -> set[Key]:
        """The resources that depend on this one; `wide`: those too to which its status does not matter."""
        one, all_of_kind = Ref(key.kind, key.name), Ref(key.kind, ALL)
        narrow = [Reference(one, False)]
        references = [*narrow, Reference(one, True), Reference(all_of_kind, True)] if wide else narrow
        found = (self._dependents.get((key.namespace, reference), ()) for reference in references)
        return {other for others in found for other in others if other != key}
