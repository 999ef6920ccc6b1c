"""Arrays by name: one process writes the register, any other looks names up in it; built on pool handles alone.

The register is an immutable snapshot in the pool; one small page, rewritten in place, holds the handle of the newest.
A reader that meets the page half-written fails the handle's checksum and looks again.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np

from xfer._shared.default import default_pool
from xfer._shared.handle import Handle
from xfer._shared.pool import Pool
from xfer._shared.reader import get
from xfer.errors import (
    BudgetExceededError,
    HandleError,
    NameMissingError,
    NameTakenError,
    ReadOnlyStoreError,
    StaleHandleError,
    XferError,
)

_PAGE = 1024
_TRIES = 200
_WAIT = 1.0  # seconds; a reader leases the register for as long as it takes to parse it


class SharedArrayStore:
    """A register of named arrays inside one pool.

    The process that makes the store changes it. Others get it by pickling or with
    `SharedArrayStore.attach(bytes(store))`, and read.

    Args:
        pool: Where the arrays lie; the process's own pool by default.
        token: Attach to the store that these bytes came from, as `attach` does.

    Example:
        >>> with xfer.SharedArrayStore() as store:
        ...     handle = store.create("weights", np.eye(2))
        ...     store.list(), float(store.get("weights").sum())
        (['weights'], 2.0)
    """

    def __init__(self, pool: Pool | None = None, *, token: bytes | None = None) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[str, Handle] = {}
        self._snapshot: Handle | None = None
        if token is not None:
            self._pool: Pool | None = None
            self._root = Handle.from_bytes(token)
            self._page = get(self._root)
            return
        self._pool = pool or default_pool()
        loan = self._pool.loan(_PAGE, np.uint8)
        with loan as page:
            page[:] = 0
            self._page = page[:]  # stays writable: this page is the one thing that is rewritten in place
        self._root = loan.handle
        self._write()

    @classmethod
    def attach(cls, token: bytes) -> SharedArrayStore:
        """Return the store that `bytes(store)` came from, for reading.

        Args:
            token: What `bytes(store)` returned.

        Raises:
            HandleError: The bytes are damaged.
            ProducerGoneError: The store's process has ended.
        """
        return cls(token=token)

    def create(self, name: str, array: Any) -> Handle:
        """Put an array under a name.

        Raises:
            NameTakenError: There is one of that name.
            ReadOnlyStoreError: This process did not make the store.
        """
        with self._lock:
            pool = self._writable()
            if name in self._arrays:
                raise NameTakenError(f"the store holds {name!r} already: remove it first")
            handle = self._arrays[name] = pool.put(array)
            try:
                self._write()
            except BaseException:
                pool.release(self._arrays.pop(name))
                raise
            return handle

    def get(self, name: str) -> np.ndarray[Any, Any]:
        """Return the array of that name: no copy, read-only, leased while anyone looks at it.

        Raises:
            NameMissingError: There is none.
            ProducerGoneError: The store's process has ended.
        """
        for attempt in range(_TRIES):
            try:
                array: np.ndarray[Any, Any] = get(self.handle(name))
                return array
            except StaleHandleError:  # removed or replaced between the two steps
                if attempt == _TRIES - 1 or not self._page.size:
                    raise
                time.sleep(0.0005)
        raise AssertionError

    def handle(self, name: str) -> Handle:
        """Return the handle of that name.

        Raises:
            NameMissingError: There is none.
        """
        arrays = self._read()
        if name not in arrays:
            raise NameMissingError(f"the store holds no {name!r}; it holds {sorted(arrays) or 'nothing'}")
        return arrays[name]

    def list(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self._read())

    def remove(self, name: str) -> None:
        """Forget a name and release its array; who reads it now keeps it until done.

        Raises:
            NameMissingError: There is none.
            ReadOnlyStoreError: This process did not make the store.
        """
        with self._lock:
            pool = self._writable()
            if name not in self._arrays:
                raise NameMissingError(f"the store holds no {name!r}; it holds {sorted(self._arrays) or 'nothing'}")
            handle = self._arrays.pop(name)
            try:
                self._write()
            finally:
                pool.release(handle)

    def clear(self) -> None:
        """Forget all names and release their arrays.

        Raises:
            ReadOnlyStoreError: This process did not make the store.
        """
        with self._lock:
            pool = self._writable()
            handles, self._arrays = list(self._arrays.values()), {}
            try:
                self._write()
            finally:
                for handle in handles:
                    pool.release(handle)

    def close(self) -> None:
        """Release everything, the register too; an attached store only lets go of its view."""
        with self._lock:
            pool, self._pool = self._pool, None
            if pool is not None and not pool.closed:
                for handle in (*self._arrays.values(), self._root, self._snapshot):
                    if handle is not None:
                        pool.release(handle)
            self._page = np.zeros(0, np.uint8)

    def __contains__(self, name: str) -> bool:
        return name in self._read()

    def __len__(self) -> int:
        return len(self._read())

    def __bytes__(self) -> bytes:
        return bytes(self._root)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return SharedArrayStore.attach, (bytes(self._root),)

    def __enter__(self) -> SharedArrayStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._page.size:
            raise StaleHandleError("this store is closed")

    def _writable(self) -> Pool:
        self._check_open()
        if self._pool is None:
            raise ReadOnlyStoreError("this store was attached from another process, which alone may change it")
        return self._pool

    def _write(self) -> None:
        pool = self._writable()
        text = json.dumps({name: bytes(handle).hex() for name, handle in self._arrays.items()}).encode()
        old = self._snapshot
        try:
            self._snapshot = pool.put(np.frombuffer(text, np.uint8))
        except BudgetExceededError:
            if old is None or len(text) > old.nbytes:
                raise
            # Giving up memory must not need more: in place of the last one and as long as it, so in the same slot.
            # Readers find that one gone and look again.
            self._snapshot = None
            pool.release(old)
            self._snapshot = pool.put(np.frombuffer(text.ljust(old.nbytes), np.uint8), timeout=_WAIT)
            old = None
        raw = bytes(self._snapshot)
        self._page[: 2 + len(raw)] = np.frombuffer(len(raw).to_bytes(2, "little") + raw, np.uint8)
        if old is not None:
            pool.release(old)

    def _read(self) -> dict[str, Handle]:
        self._check_open()
        problem: XferError = StaleHandleError("nothing was tried")
        for _ in range(_TRIES):
            page = self._page.tobytes()
            try:
                snapshot = get(Handle.from_bytes(page[2 : 2 + int.from_bytes(page[:2], "little")]))
            except (HandleError, StaleHandleError) as error:
                problem = error
                time.sleep(0.0005)
                continue
            return {name: Handle(bytes.fromhex(raw)) for name, raw in json.loads(snapshot.tobytes()).items()}
        if type(problem) is StaleHandleError:
            raise StaleHandleError("the store has no register any more: its process has closed it") from problem
        raise problem
