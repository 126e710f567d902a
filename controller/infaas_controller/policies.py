"""Policies by name, made once: `slo`, or `static:VARIANT` with a parameter after the colon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from infaas.errors import InvalidError
from infaas_controller.decide.policies.base import Policy

GROUP = "infaas.policies"
_KEPT = 256

PolicyFactory = Callable[[str], Policy]


class PolicyBook:
    """Looks a policy up by what a caller or a task's defaults say. Made policies are kept, with their memory."""

    def __init__(self, factories: Mapping[str, PolicyFactory]) -> None:
        self._factories = dict(factories)
        self._made: dict[str, Policy] = {}

    def __call__(self, name: str) -> Policy:
        """Raises InvalidError naming the installed policies, or what is wrong with the parameter."""
        made = self._made.get(name)
        if made is None:
            kind, _, parameter = name.partition(":")
            factory = self._factories.get(kind)
            if factory is None:
                raise InvalidError(f"unknown policy {name!r}; installed are {', '.join(sorted(self._factories))}")
            try:
                made = factory(parameter)
            except ValueError as error:
                raise InvalidError(str(error)) from error
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[name] = made
        return made

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._factories))


def installed_policies() -> PolicyBook:
    """Every policy of the entry point group."""
    return PolicyBook({point.name: point.load() for point in entry_points(group=GROUP)})
