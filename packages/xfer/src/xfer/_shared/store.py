"""Arrays by name: one process changes the store, any other looks names up in it.

One small page holds the handle of the table of names, which grows by being written anew; everything else is written in
place, so that a change costs the same whatever the store holds.
"""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import numpy as np

from xfer._arguments import token_bytes
from xfer._shared.default import default_pool
from xfer._shared.handle import Handle
from xfer._shared.pool import Pool
from xfer._shared.reader import READER, get
from xfer._shared.register import ELSEWHERE, LEAST, REMOVED, ROOM, ROW, USED, Row, Table, digest_of
from xfer.errors import (
    HandleError,
    NameMissingError,
    NameTakenError,
    ProducerGoneError,
    ReadOnlyStoreError,
    StaleHandleError,
)

_PAGE = 1024
_TRY_FOR = 0.1  # seconds; a change by the owner is seen half done for microseconds


class _Entry(NamedTuple):
    """What the owner knows of a name."""

    handle: Handle
    row: int
    extra: Handle | None  # the array that holds name and handle, where a row has no room for them


class SharedArrayStore:  # long because the argument texts of its public methods are in it
    """A register of named arrays inside one pool.

    The process that makes the store changes it. Others get it by pickling or with
    `SharedArrayStore.attach(bytes(store))`, and read. An array that a reader has got stays valid; a store whose process
    has ended raises ProducerGoneError.

    Args:
        pool: Where the arrays lie; the process's own pool by default.
        token: Attach to the store that these bytes came from, as `attach` does.

    Example:
        >>> with xfer.SharedArrayStore() as store:
        ...     handle = store.create("weights", np.eye(2))
        ...     handle = store.replace("weights", np.ones((2, 2)))
        ...     store.list(), float(store.get("weights").sum())
        (['weights'], 4.0)
    """

    def __init__(self, pool: Pool | None = None, *, token: bytes | None = None) -> None:
        self._lock = threading.RLock()
        self._closed = False
        self._entries: dict[str, _Entry] = {}
        self._taken = 0  # rows that hold a name or held one
        self._table_handle = b""
        if token is not None:
            self._pool: Pool | None = None
            self._root = Handle.from_bytes(token)
            self._page = get(self._root)
            return
        self._pool = pool or default_pool()
        loan = self._pool.loan(_PAGE, np.uint8)
        with loan as page:
            page[:] = 0
            self._page = page[:]  # stays writable: this page is rewritten in place
        self._root = loan.handle
        del page
        self._table = self._new_table(LEAST)

    @classmethod
    def attach(cls, token: bytes) -> SharedArrayStore:
        """Return the store that `bytes(store)` came from, for reading.

        Args:
            token: What `bytes(store)` returned.

        Raises:
            HandleError: The bytes are damaged.
            ProducerGoneError: The store's process has ended.
        """
        return cls(token=token_bytes(token, "a SharedArrayStore"))

    def create(self, name: str, array: Any) -> Handle:
        """Put an array under a new name.

        Args:
            name: The name.
            array: What `Pool.put` takes.

        Raises:
            NameTakenError: The name is used.
            ReadOnlyStoreError: This process did not make the store.
            BudgetExceededError: No room; the store is as it was.
        """
        with self._lock:
            pool = self._writable()
            if name in self._entries:
                raise NameTakenError(f"the store holds {name!r} already: remove it first, or use `replace`")
            return self._set(pool, name, array)

    def replace(self, name: str, array: Any) -> Handle:
        """Put an array under a name, new or used; a reader sees the old array or the new one, never neither.

        Args:
            name: The name.
            array: What `Pool.put` takes.

        Raises:
            ReadOnlyStoreError: This process did not make the store.
            BudgetExceededError: No room; the store is as it was.
        """
        with self._lock:
            return self._set(self._writable(), name, array)

    def get(self, name: str) -> Any:
        """Return the array of that name: no copy, read-only, leased until its last view is gone.

        Args:
            name: The name.

        Raises:
            NameMissingError: The store holds no such name.
            ProducerGoneError: The store's process has ended.
        """
        end = 0.0
        while True:
            try:
                found = self._find(name)
                return get(self.handle(name) if found is None else found)
            except ProducerGoneError:
                raise
            except StaleHandleError:  # removed or replaced between the two steps
                end = end or time.monotonic() + _TRY_FOR
                if self._closed or time.monotonic() > end:
                    raise

    def handle(self, name: str) -> Handle:
        """Return the handle of that name.

        Args:
            name: The name.

        Raises:
            NameMissingError: The store holds no such name.
            ProducerGoneError: The store's process has ended.
        """
        found = self._find(name)
        self._check_lives()
        if found is None:
            names = self.list()
            some = f"{names[:20]}{' and more' if len(names) > 20 else ''}" if names else "nothing"
            raise NameMissingError(f"the store holds no {name!r}; it holds {some}")
        return found

    def list(self) -> list[str]:
        """Return the names, sorted."""
        self._check_lives()
        return sorted(self._read()) if self._pool is None else sorted(self._owned())

    def remove(self, name: str) -> None:
        """Remove a name and release its array, which stays valid for those that read it now.

        Args:
            name: The name.

        Raises:
            NameMissingError: The store holds no such name.
            ReadOnlyStoreError: This process did not make the store.
        """
        with self._lock:
            pool = self._writable()
            if name not in self._entries:
                self.handle(name)
            self._forget(pool, name)

    def clear(self) -> None:
        """Remove all names and release their arrays.

        Raises:
            ReadOnlyStoreError: This process did not make the store.
        """
        with self._lock:
            pool = self._writable()
            for name in list(self._entries):
                self._forget(pool, name)

    def close(self) -> None:
        """Release everything, the register too; an attached store only releases its view."""
        with self._lock:
            if self._closed:
                return
            pool = self._pool
            if pool is not None and not pool.closed:
                for name in list(self._entries):
                    self._forget(pool, name)
                pool.release(self._root)
                pool.release(self._table_handle)
            self._closed = True
            self._page = np.zeros(0, np.uint8)
            self._table = Table(self._page)

    def __contains__(self, name: str) -> bool:
        found = self._find(name)
        self._check_lives()
        return found is not None

    def __len__(self) -> int:
        self._check_lives()
        return len(self._read()) if self._pool is None else len(self._owned())

    def __bytes__(self) -> bytes:
        return bytes(self._root)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return SharedArrayStore.attach, (bytes(self._root),)

    def __enter__(self) -> SharedArrayStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StaleHandleError("this store is closed")

    def _check_lives(self) -> None:
        """Check that the process which made the store has neither closed it nor ended."""
        self._check_open()
        if self._pool is None:
            try:
                READER.check(bytes(self._root))
            except ProducerGoneError:
                raise
            except StaleHandleError as error:
                raise StaleHandleError("the store has no register any more: its process has closed it") from error

    def _writable(self) -> Pool:
        self._check_open()
        if self._pool is None:
            raise ReadOnlyStoreError("this store was attached from another process, which alone may change it")
        return self._pool

    def _owned(self) -> dict[str, _Entry]:
        self._check_open()
        return self._entries

    def _set(self, pool: Pool, name: str, array: Any) -> Handle:
        if not isinstance(name, str):
            raise ValueError(f"got the name {name!r}, want text")
        old = self._entries.get(name)
        if old is None and 4 * (self._taken + 1) > 3 * self._table.rows:
            self._grow(pool)
        handle = pool.put(array)
        extra: Handle | None = None
        try:
            row, extra = self._row(pool, name, handle)
        except BaseException:
            pool.release(handle)
            raise
        index = self._free_row(row.digest) if old is None else old.row
        self._table.write(index, row)
        self._entries[name] = _Entry(handle, index, extra)
        if old is not None:
            self._release(pool, old)
        return handle

    @staticmethod
    def _row(pool: Pool, name: str, handle: Handle) -> tuple[Row, Handle | None]:
        text, raw = name.encode("utf-8", "surrogatepass"), bytes(handle)
        if len(text) + len(raw) <= ROOM:
            return Row(USED, digest_of(name), text, raw), None
        extra = pool.put(np.frombuffer(len(text).to_bytes(4, "little") + text + raw, np.uint8))
        return Row(ELSEWHERE, digest_of(name), b"", bytes(extra)), extra

    def _free_row(self, digest: int) -> int:
        for index, row in self._table.probe(digest):
            if row is None:
                self._taken += 1
                return index
            if row.state == REMOVED:
                return index
        raise AssertionError("the table is never full")

    def _grow(self, pool: Pool) -> None:
        """Write the table anew, with room for twice the names."""
        rows = LEAST
        while 2 * rows < 4 * (len(self._entries) + 1):
            rows *= 2
        old, old_handle = self._table, self._table_handle
        entries = self._entries
        rows_of = [(name, old.read(entry.row)) for name, entry in entries.items()]
        self._table = self._new_table(rows, publish=False)
        moved = {}
        for name, row in rows_of:
            assert row is not None
            index = self._free_row(row.digest)
            self._table.write(index, row)
            moved[name] = entries[name]._replace(row=index)
        self._entries = moved
        self._publish()
        pool.release(old_handle)

    def _new_table(self, rows: int, publish: bool = True) -> Table:
        pool = self._writable()
        loan = pool.loan(rows * ROW, np.uint8)
        with loan as memory:
            memory[:] = 0
            table = Table(memory[:])
        self._table_handle, self._taken = bytes(loan.handle), 0
        if publish:
            self._publish()
        return table

    def _publish(self) -> None:
        raw = self._table_handle
        self._page[: 2 + len(raw)] = np.frombuffer(len(raw).to_bytes(2, "little") + raw, np.uint8)

    def _forget(self, pool: Pool, name: str) -> None:
        entry = self._entries.pop(name)
        self._table.write(entry.row, Row(REMOVED, digest_of(name), b"", b""))
        self._release(pool, entry)

    @staticmethod
    def _release(pool: Pool, entry: _Entry) -> None:
        pool.release(entry.handle)
        if entry.extra is not None:
            pool.release(entry.extra)

    def _find(self, name: str) -> Handle | None:
        if self._pool is not None:
            entry = self._owned().get(name)
            return entry.handle if entry is not None else None
        text, digest = name.encode("utf-8", "surrogatepass"), digest_of(name)
        end = 0.0
        while True:
            try:
                for row in self._current().find(digest):
                    if row.state == USED and row.name == text:
                        return Handle(row.handle)
                    if row.state == ELSEWHERE:
                        found, handle = _elsewhere(row)
                        if found == text:
                            return handle
            except ProducerGoneError:
                raise
            except StaleHandleError:  # the owner replaced what a row names
                end = end or time.monotonic() + _TRY_FOR
                if time.monotonic() > end:
                    raise
                continue
            return None

    def _read(self) -> dict[str, Handle]:
        """Return all names and handles, as another process's store shows them."""
        found = {}
        for row in self._current().used():
            if row.state == USED:
                found[row.name.decode("utf-8", "surrogatepass")] = Handle(row.handle)
                continue
            try:
                text, handle = _elsewhere(row)
                found[text.decode("utf-8", "surrogatepass")] = handle
            except ProducerGoneError:
                raise
            except StaleHandleError:
                continue  # removed meanwhile
        return found

    def _current(self) -> Table:
        """Return the table of another process's store.

        Raises:
            StaleHandleError: The store is closed.
            ProducerGoneError: Its process has ended.
        """
        self._check_open()
        end = 0.0
        while True:
            known = self._table_handle
            if known and self._page[2 : 2 + len(known)].tobytes() == known:
                return self._table
            page = self._page.tobytes()
            raw = page[2 : 2 + int.from_bytes(page[:2], "little")]
            try:
                self._table, self._table_handle = Table(get(Handle.from_bytes(raw))), raw
                return self._table
            except ProducerGoneError:
                raise
            except (HandleError, StaleHandleError):  # the page is half written, or the table has moved on
                self._check_lives()
                end = end or time.monotonic() + _TRY_FOR
                if time.monotonic() > end:
                    raise


def _elsewhere(row: Row) -> tuple[bytes, Handle]:
    raw = get(Handle(row.handle)).tobytes()
    end = 4 + int.from_bytes(raw[:4], "little")
    return raw[4:end], Handle(raw[end:])
