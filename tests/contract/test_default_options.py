"""Who says nothing about options gets an access that respects what the guest forbade, and options are keywords."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator

import usermem
from usermem import IO, ResolvedIO

NAME = "ignore_permissions"


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


def test_every_option_is_a_keyword_that_ignores_nothing() -> None:
    """No default is any other than False, and no public function takes the option by position, but for PagedIO's.

    Those are quicker for it, as it says.
    """
    options = [
        (f"{name}, {parameter.name}", function.__name__, parameter)
        for name, function in functions()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name.endswith(NAME)
    ]
    assert len(options) > 80
    for where, name, parameter in options:
        assert parameter.default in (False, parameter.empty), where
        if ".PagedIO." not in where and (name == "__init__" or not name.startswith("_")):
            assert parameter.kind is parameter.KEYWORD_ONLY, where


def test_every_call_of_an_io_has_the_option() -> None:
    """The Protocol's, and all that ResolvedIO offers beside them; so has whatever stands for the same in a subclass."""
    calls = {
        name: member
        for kind in (IO, ResolvedIO)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_") and name != "range_fault"
    }
    assert len(calls) >= 14
    for name, function in functions():
        if function.__name__ in calls and "." in function.__qualname__ and "Sequence" not in name:
            option = inspect.signature(function).parameters.get(NAME)
            assert option is not None, name
            assert option.default is False, name
