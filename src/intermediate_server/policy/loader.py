"""Loads the policy of the configuration."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import reduce
from pathlib import Path

from intermediate_server.config import Settings
from intermediate_server.errors import ConfigError
from intermediate_server.policy.base import Policy
from intermediate_server.policy.certificate import CertificatePolicy
from intermediate_server.policy.guard import what_raised
from intermediate_server.policy.rules import RulesPolicy
from intermediate_server.policy.rules_file import parse_rules

Source = tuple[str, int, int]
_imported: dict[str, Source | None] = {}
"""Source files of policies' modules, as they were when Python read them."""


def make_policy(settings: Settings) -> Policy:
    """The policy of the settings: rules, callout or Python policy, else the names in certificates.

    By certificates, peers that may come without one may register anything, as at servers before this one: clients in
    the field have none. Raises ``ConfigError``.
    """
    if settings.rules is not None:
        return RulesPolicy(parse_rules(settings.rules))
    if settings.callout is not None:
        from intermediate_server.policy.callout import CalloutPolicy  # noqa: PLC0415  httpx is slow to import

        return CalloutPolicy(settings.callout)
    if settings.policy is not None:
        return load_policy(settings.policy)
    return CertificatePolicy(anonymous=settings.client_auth != "required", allow_unnamed=settings.allow_unnamed_certs)


def load_policy(name: str) -> Policy:
    """The policy at ``module:attr``. Raises ``ConfigError``, which says which part is wrong.

    ``attr`` may be a :class:`Policy`, a subclass of it, or a function that returns one; the latter two are called
    without arguments. It may contain dots. Importing the module runs its code: the name comes from the operator's
    configuration and from nowhere else.
    """
    module_name, colon, attr = name.partition(":")
    if not (module_name and colon and attr):
        raise ConfigError(f'policy {name!r} is not of the form "module:attr"')
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None:
            raise ConfigError(_failed(name, f"importing {module_name!r}", error)) from error
        if f"{module_name}.".startswith(f"{missing}."):
            text = f"there is no module {missing!r}; install it or add its directory to PYTHONPATH"
        else:
            text = f"{module_name!r} needs the module {missing!r}; install it"
        raise ConfigError(f"policy {name!r}: {text}") from error
    _imported.setdefault(module_name, _source(module_name))
    try:
        found: object = reduce(getattr, attr.split("."), module)
    except AttributeError as error:
        raise ConfigError(f"policy {name!r}: module {module_name!r} has no {attr!r}") from error
    if not isinstance(found, Policy) and callable(found):
        try:
            found = found()
        except BaseException as error:
            raise ConfigError(_failed(name, f"calling {attr!r}", error)) from error
    if isinstance(found, Policy):
        if type(found.concurrency) is not int or found.concurrency < 1:
            raise ConfigError(f"policy {name!r}: its concurrency must be a whole number of at least 1")
        return found
    if inspect.iscoroutine(found):
        found.close()
        raise ConfigError(f"policy {name!r}: {attr!r} is async; a policy is made by a plain function")
    raise ConfigError(f"policy {name!r}: {attr!r} gives a {type(found).__name__}, which is no Policy")


def changed_source(name: str) -> Path | None:
    """The file of a Python policy's module, if it has changed since the module was imported.

    Python imports a module once for the life of a process, so the old code goes on deciding. Modules that it imports in
    its turn are not checked.
    """
    module_name = name.partition(":")[0]
    return None if _imported.get(module_name) == _source(module_name) else source_of(name)


def source_of(name: str) -> Path | None:
    """The file of a Python policy's module, once imported."""
    imported = _imported.get(name.partition(":")[0])
    return None if imported is None else Path(imported[0])


def _source(module_name: str) -> Source | None:
    """File, time of change in nanoseconds and size of an imported module; None for one that has no file."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None:
        return None
    try:
        status = Path(file).stat()
    except OSError:
        return file, 0, 0
    return file, status.st_mtime_ns, status.st_size


def _failed(name: str, what: str, error: BaseException) -> str:
    return f"policy {name!r}: {what} {what_raised(error)}; do it in a Python shell to see the rest"
