"""Profiles of models on devices, and the results of selections, allocations and benchmarks, by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ensemble_core.errors import UserError
from ensemble_core.library import names
from ensemble_core.library.parsing import parse, parse_object
from ensemble_core.library.records import Profile
from ensemble_core.library.store import Store, checked

ResultKind = Literal["selections", "allocations", "benchmarks"]
ResultCheck = Callable[[str, dict[str, Any], str], object]  # of digest, content and file; UserError refuses it


class Results:
    """The part of a library that commands after the search write, each file whole.

    A profile may be replaced, for it grows with the batch sizes that are asked for; a result never is, but it may be
    deleted where nobody counts on it.
    """

    store: Store

    def profile(self, device_type: str, engine: str, model_id: str) -> Profile | None:
        """The profile of a model on a device type and engine, None if it was not measured."""
        path = self._checked(names.profile(device_type, engine, model_id))
        try:
            data = self.store.read(path)
        except FileNotFoundError:
            return None
        return self._profile(path, data)

    def profiles(self, device_type: str, engine: str) -> dict[str, Profile]:
        """All profiles on a device type and engine, by model, read concurrently."""
        prefix = self._checked(names.profile(device_type, engine, "x")).removesuffix("x.json")
        found = self.store.read_many(self.store.list(prefix))
        profiles = (self._profile(path, data) for path, data in sorted(found.items()))
        return {profile.model: profile for profile in profiles}

    def profiled_on(self, engine: str, model_id: str) -> tuple[str, ...]:
        """The device types on which a model was measured with an engine, by name."""
        end = f"/{engine}/{model_id}.json"
        paths = (path for path in self.store.list("profiles/") if path.endswith(end))
        return tuple(path.removeprefix("profiles/").removesuffix(end) for path in paths)

    def write_profile(self, profile: Profile) -> None:
        """Store a profile; it replaces an earlier one of the same model, device type and engine."""
        path = self._checked(names.profile(profile.device_type, profile.engine, profile.model))
        self.store.write(path, _json(profile.model_dump(mode="json", by_alias=True)))

    def result(self, kind: ResultKind, digest: str) -> dict[str, Any] | None:
        """A stored result, None if there is none."""
        path = self._checked(f"{kind}/{digest}.json")
        try:
            return parse_object(self.store.read(path), f"{self.store.url}/{path}")
        except FileNotFoundError:
            return None

    def write_result(self, kind: ResultKind, digest: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Store a result under the digest of what it was computed from, unless there is one; returns what is stored.

        So a command that was stopped and wakes up later changes nothing that others count on by then.
        """
        mine = dict(content)
        if self.store.create(self._checked(f"{kind}/{digest}.json"), _json(mine)):
            return mine
        return self.result(kind, digest) or mine

    def delete_result(self, kind: ResultKind, digest: str) -> None:
        """Remove a result; one that is missing is fine."""
        self.store.delete(self._checked(f"{kind}/{digest}.json"))

    def results(self, kind: ResultKind) -> dict[str, dict[str, Any]]:
        """All results of a kind, by digest."""
        found = self.store.read_many(self.store.list(f"{kind}/"))
        return {
            path.removeprefix(f"{kind}/").removesuffix(".json"): parse_object(data, f"{self.store.url}/{path}")
            for path, data in sorted(found.items())
        }

    def _profile(self, path: str, data: bytes) -> Profile:
        where = f"{self.store.url}/{path}"
        profile = parse(Profile, data, where)
        if names.profile(profile.device_type, profile.engine, profile.model) != path:
            told = f"{profile.model} on {profile.device_type}/{profile.engine}"
            raise UserError(where, f"is the profile of another model or device: {told}")
        return profile

    def _checked(self, path: str) -> str:
        try:
            return checked(path)
        except ValueError as error:
            raise UserError(self.store.url, str(error)) from None


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
