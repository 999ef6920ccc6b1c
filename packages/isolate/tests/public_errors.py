"""Makes every public error, and as a program sends each through the standard library's process pools."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from isolate import errors

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ContractMismatchError": ("stats", ["has no method 'mean'"]),
    "RemoteError": ("sqlite3.IntegrityError", "UNIQUE failed", "Traceback\n"),
    "WorkerDiedError": ("stats", None, 9, "it was replaced", ("last line",)),
}
NAMES = sorted(errors.__all__)


def made(name: str) -> BaseException:
    """Return the error of that name with all its attributes."""
    kind = getattr(errors, name)
    error: BaseException = kind(*ARGUMENTS.get(name, ("what happened",)))
    return error


def seen(error: BaseException) -> tuple[type, str, dict[str, Any]]:
    """Return what must survive: type, message and attributes."""
    return type(error), str(error), {key: value for key, value in vars(error).items() if not key.startswith("__")}


def fail(name: str) -> None:
    """Raise the error of that name."""
    raise made(name)


def main() -> None:
    """Print how many errors came through both pools unchanged."""
    ordinary = [name for name in NAMES if issubclass(getattr(errors, name), Exception)]
    context = multiprocessing.get_context("spawn")
    passed = 0
    with ProcessPoolExecutor(1, mp_context=context) as executor, context.Pool(1) as pool:
        for name in ordinary:
            for future in (executor.submit(fail, name).exception, pool.apply_async(fail, (name,)).get):
                try:
                    error = future()
                except Exception as raised:
                    error = raised
                assert seen(error) == seen(made(name)), name
                passed += 1
    print(passed, "of", 2 * len(ordinary))


if __name__ == "__main__":
    main()
