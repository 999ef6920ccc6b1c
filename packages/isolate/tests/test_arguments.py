"""Arguments that a program passes: of other types, read once only, a text in place of a list, copied or pickled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isolate
from isolate import EnvironmentStore, Host, Manifest, Policy, Quotas
from isolate.errors import InvalidManifestError, InvalidRequirementError

PACKAGE = "packaging==23.2"


def version() -> str:
    """The version that this environment has."""
    import packaging

    return packaging.__version__


@pytest.mark.parametrize("made", [lambda: iter([PACKAGE]), lambda: {PACKAGE}, lambda: (PACKAGE,)])
def test_dependencies_of_any_iterable(store: Path, made: Callable[[], Any]) -> None:
    """An iterator can be read only once: it counts as what it yields, for every use of a decorator too."""

    def here() -> str:
        import packaging

        return packaging.__version__

    with Host(store) as host:
        assert isolate.run(here, dependencies=made(), host=host) == "23.2"
        decorator = isolate.function(dependencies=made(), host=host)
        assert [decorator(version)(), decorator(here)()] == ["23.2", "23.2"]


def test_one_text_is_no_list_of_dependencies(store: Path) -> None:
    """Its letters would be installed: each is a name that a package may have."""
    with Host(store) as host:
        for attempt in (
            lambda: isolate.run(version, dependencies="ab", host=host),
            lambda: isolate.function(dependencies="ab"),
            lambda: isolate.Function(version, dependencies="ab"),
        ):
            with pytest.raises(TypeError, match="one text; wanted a list"):
                attempt()
        with pytest.raises(InvalidManifestError, match="Expected `array`, got `str`"):
            host.load(Manifest(name="one", dependencies="ab"))  # type: ignore[arg-type]
        with pytest.raises(InvalidRequirementError, match="one text"):
            EnvironmentStore(store).ensure(Manifest(name="one", dependencies="ab"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key", ["allow_env", "allow_read", "allow_write", "allow_indexes", "allow_find_links", "find_links"]
)
def test_one_text_allows_nothing_in_a_policy(key: str) -> None:
    """The letters of "HF_*" contain the pattern of everything, those of "/data" the root of all folders."""
    for text in ("HF_*", "/data", b"/data", Path("/data")):
        with pytest.raises(TypeError, match=f"{key} is .* one text"):
            Policy(**{key: text})  # type: ignore[arg-type]
    assert getattr(Policy(**{key: [Path("/data"), "x"]}), key) == ("/data", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"nice": "5"}, TypeError),
        ({"allow_network": "no"}, TypeError),
        ({"build_seconds": float("nan")}, ValueError),
        ({"max_start": -1.0}, ValueError),
        ({"variables": {"*": {"A": 1}}}, TypeError),
        ({"limits": {"memory": [1]}}, TypeError),
        ({"quotas": {"threads": "many"}}, TypeError),
    ],
)
def test_a_policy_refuses(arguments: dict[str, Any], error: type[Exception]) -> None:
    """What it could not carry out."""
    with pytest.raises(error, match=f"Policy|{next(iter(arguments))}"):
        Policy(**arguments)


def test_a_policy_takes() -> None:
    """Numbers of numpy, and maps for its parts."""
    policy = Policy(nice=np.int64(3), limits={"memory": "1GB"}, quotas={"threads": 2})  # type: ignore[arg-type]
    assert (type(policy.nice), policy.limits.as_numbers(), policy.quotas) == (int, {"memory": 10**9}, Quotas(threads=2))
    assert pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(TypeError, match="array_bytes"):
        Quotas(array_bytes="4GB")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x/../y"},
        {"env": "HOME"},
        {"provides": "echo"},
        {"enabled": "no"},
        {"python": 3.12},
        {"entry": "a:"},
        {"dependencies": [1]},
        {"timeouts": {"call": -1}},
    ],
)
def test_a_manifest_that_a_program_makes_is_checked(store: Path, values: dict[str, Any]) -> None:
    """As one of a file is."""
    with Host(store) as host, pytest.raises(InvalidManifestError, match="the manifest of"):
        host.load(Manifest(**{"name": "made", **values}))


def test_a_manifest_may_name_its_folder_relatively(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later reload finds it from another working folder."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "main.py").write_text("def fine(): return 1\n")
    monkeypatch.chdir(tmp_path)
    with Host(store) as host:
        extension = host.load(Manifest(name="made", directory=Path("made")))
        monkeypatch.chdir("/")
        extension.reload()
        assert extension.call.fine() == 1


def test_a_host_refuses(store: Path) -> None:
    """What would fail, or wait for ever, later."""
    for arguments in ({"threads": 0}, {"max_depth": 0}, {"spares": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Host(store, **arguments)  # type: ignore[arg-type]
    for wrong in ({"threads": "3"}, {"spares": True}, {"policy": {"sandbox": "none"}}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            Host(store, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"wanted an isolate\.Host"):
        isolate.run(version, host="environments")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="python is 3"):
        isolate.function(version, python=3.12)  # type: ignore[call-overload]


def test_hosts_and_extensions_are_not_copied(store: Path, tmp_path: Path) -> None:
    """The error says what to do in place of it."""
    (tmp_path / "manifest.yaml").write_text("name: kept\n")
    (tmp_path / "main.py").write_text("def fine(): return 1\n")
    with Host(store) as host:
        extension = host.load(tmp_path)
        for value in (host, extension):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="belongs to its"):
                    attempt(value)
        with pytest.raises(TypeError, match="methods is 'get', one text"):
            host.export({"a": 1}, name="table", methods="get")
        assert extension.call.fine() == 1
