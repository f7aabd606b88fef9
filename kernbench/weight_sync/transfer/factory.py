"""Transfer engines by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from kernbench.weight_sync.transfer.base import WeightTransferEngine

Engine = WeightTransferEngine[Any, Any]


class WeightTransferEngineFactory:
    """Name -> engine class; a class given by its module's path is imported when it is first made."""

    _registry: ClassVar[dict[str, Callable[[], type[Engine]]]] = {}

    @classmethod
    def register_engine(cls, name: str, module_or_class: str | type[Engine], class_name: str | None = None) -> None:
        """Make an engine known.

        Args:
            module_or_class: the class, or the path of its module.
            class_name: its name in that module.

        Raises:
            ValueError: the name is already registered, or a module's path comes without ``class_name``.
        """
        if name in cls._registry:
            raise ValueError(f"Weight transfer engine '{name}' is already registered.")
        if isinstance(module_or_class, str):
            if class_name is None:
                raise ValueError("class_name is required when an engine is registered by its module's path")
            path, attribute = module_or_class, class_name
            cls._registry[name] = lambda: getattr(import_module(path), attribute)
        else:
            found = module_or_class
            cls._registry[name] = lambda: found

    @classmethod
    def create_engine(cls, backend: str, config: Any = None, parallel_config: Any = None) -> Engine:
        """An engine of that name.

        Raises:
            ValueError: "Invalid weight transfer backend: x. Available engines: [...]".
        """
        return cls.engine_class(backend)(config, parallel_config)

    @classmethod
    def engine_class(cls, backend: str) -> type[Engine]:
        """The class itself, for a trainer to call its ``trainer_send_weights``. Raises: as :meth:`create_engine`."""
        if backend not in cls._registry:
            raise ValueError(f"Invalid weight transfer backend: {backend}. Available engines: {list(cls._registry)}")
        return cls._registry[backend]()
