"""Names to plugins. A plugin is one file in its package, named as it is registered; nothing else needs an edit.

Names are found by listing the package, without importing it; a plugin is imported when asked for. Third parties
register on import of the modules they name in the entry-point group `optimize.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from optimize.errors import UserError, unknown

T = TypeVar("T")
GROUP = "optimize.plugins"


class Registry:
    """One kind of plugin, found in `package` (a dotted name) or registered by a third party."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._found: dict[str, Any] = {}
        self._third_party_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that makes a class available as `name`; a second class under one name is refused."""

        def add(plugin: T) -> T:
            earlier = self._found.get(name)
            if earlier is not None and earlier.__module__ != plugin.__module__:
                raise UserError(
                    f'{self.kind}: "{name}" is registered twice, by {earlier.__module__} and {plugin.__module__}'
                )
            plugin.name = name  # type: ignore[attr-defined]
            self._found[name] = plugin
            return plugin

        return add

    def names(self) -> list[str]:
        """All known names, sorted; imports none of the built-in ones."""
        self._load_third_parties()
        package = importlib.import_module(self.package)
        files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
        return sorted(files | set(self._found))

    def get(self, name: str) -> Any:
        """The plugin registered as `name`; raises UserError with the nearest name where there is none."""
        if name not in self._found:
            if name not in self.names():
                raise unknown(self.kind, name, self.names())
            if name not in self._found:  # third parties have registered by now
                importlib.import_module(f"{self.package}.{name}")
        return self._found[name]

    def _load_third_parties(self) -> None:
        if not self._third_party_loaded:
            self._third_party_loaded = True
            for point in entry_points(group=GROUP):
                point.load()


PASSES = Registry("pass", "optimize.passes")
EXPORTERS = Registry("exporter", "optimize.exporters")
RUNNERS = Registry("runner", "optimize.runners")
SOURCES = Registry("source", "optimize.sources")
