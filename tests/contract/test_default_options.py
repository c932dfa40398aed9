"""Who says nothing about options gets the ones that respect what the guest forbade."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator

import usermem
from usermem import DEFAULT_OPTS, IOOpts


def functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every function and method of usermem, private ones too."""
    for found in pkgutil.walk_packages(usermem.__path__, "usermem."):
        module = importlib.import_module(found.name)
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == found.name]
        for value in own:
            for member in vars(value).values() if inspect.isclass(value) else [value]:
                function = getattr(member, "__func__", member)  # a class method's
                if inspect.isfunction(function):
                    yield f"{found.name}.{function.__qualname__}", function


def test_the_default_ignores_nothing() -> None:
    """Options that say nothing are the default ones, and respect permissions."""
    assert DEFAULT_OPTS == IOOpts() == IOOpts(ignore_permissions=False)


def test_every_default_is_the_default() -> None:
    """No function's own default for its options is any other; None stands for it."""
    defaults = {
        f"{name}, {parameter.name}": parameter.default
        for name, function in functions()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name.endswith("opts") and parameter.default is not parameter.empty
    }
    assert len(defaults) > 50
    assert {name for name, default in defaults.items() if default not in (None, DEFAULT_OPTS)} == set()
