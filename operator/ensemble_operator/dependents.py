"""Which resources depend on which: a search that has grown wakes the selections that name it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ensemble_operator.queue import Key
from ensemble_operator.world import Ref

ALL = "*"


class Dependents:
    """A hint only: what is not known yet is looked at anyway, at the start and from time to time."""

    def __init__(self) -> None:
        self._references: dict[Key, frozenset[Ref]] = {}
        self._dependents: defaultdict[tuple[str, Ref], set[Key]] = defaultdict(set)

    def replace(self, key: Key, references: Iterable[Ref]) -> None:
        """From now on the resource depends on these of its namespace, and on no other."""
        wanted, known = frozenset(references), self._references.get(key, frozenset())
        for ref in wanted - known:
            self._dependents[key.namespace, ref].add(key)
        for ref in known - wanted:
            place = (key.namespace, ref)
            self._dependents[place].discard(key)
            if not self._dependents[place]:
                del self._dependents[place]
        self._references.pop(key, None)
        if wanted:
            self._references[key] = wanted

    def of(self, key: Key, wide: bool) -> set[Key]:
        """The resources that depend on this one; `wide`: those too that depend on all of its kind."""
        refs = (Ref(key.kind, key.name), *([Ref(key.kind, ALL)] if wide else ()))
        return {one for ref in refs for one in self._dependents.get((key.namespace, ref), ()) if one != key}
