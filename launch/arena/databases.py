"""Where votes are kept: an SQLite file, or a PostgreSQL database that several arenas share. Both run the same SQL."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmdit_jax.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
BUSY_SECONDS = 10.0
"""How long one writer waits for another, and a request for a connection."""
TOGETHER = 256
"""Writes that share one transaction of SQLite, and so one wait for the disk."""
CONNECTIONS = 8
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "9p", "fuse.", "weka", "panfs")
"""Beginnings of the names of file systems on which SQLite's log is not shared between hosts, as it has to be."""
LOCK = 0x61_72_65_6E_61
"""Of PostgreSQL's advisory locks, the arena's: its name in ASCII."""


class Unavailable(RuntimeError):
    """The database can't be reached, is busy or full. What was asked may be asked again."""


def shared_kind(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of network file system that a path lies on; None for others, and where nothing tells."""
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return None
    over = [(len(place), kind) for _, place, kind, *_ in lines if path.is_relative_to(place)]
    kind = max(over, key=lambda found: found[0], default=(0, ""))[1]
    return kind if kind.startswith(SHARED) else None


class Cursor(Protocol):
    """What a piece of work sees of a database, in a transaction. Parameters stand as ? in the SQL."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """How many rows were changed."""

    def alone(self) -> None:
        """Until the end of the transaction no other one is past this."""


Work = Callable[[Cursor], T]


class Database(Protocol):
    """Pieces of work, each whole or not at all."""

    where: str
    """For people to read; without a password."""

    def write(self, work: Work[T]) -> Future[T]:
        """The result comes once it is on disk, Unavailable where it may not be."""

    def read(self, work: Work[T]) -> T:
        """Keeps no writer waiting. Raises Unavailable."""

    def close(self) -> None: ...


def open_database(where: str) -> Database:
    """The database at a path or URL; an SQLite file is made where there is none.

    Raises:
      UserError: it can't be opened.
    """
    if where.startswith(("postgresql://", "postgres://")):
        return Postgres(where)
    if "://" in where:
        scheme = where.split("://")[0]  # more may hold a password
        raise UserError(f"votes='{scheme}://…': expected a path, or postgresql://USER@HOST/DATABASE")
    return Sqlite(Path(where))


class _SqliteCursor:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, values).rowcount

    def alone(self) -> None:
        pass  # who writes is


class Sqlite:
    """One thread writes, whatever has come in together in one transaction; who reads has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = self._connect()
            (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except OSError as error:
            raise UserError(f"votes={self.where!r}: {error.strerror}; choose another place") from error
        except sqlite3.Error as error:
            raise UserError(f"votes={self.where!r}: not an SQLite file that can be used ({error})") from error
        if (kind := shared_kind(path.resolve())) is not None:
            log.warning(
                "%s: on %s, which hosts share; one arena at a time may write there, and none of another host",
                path,
                kind,
            )
        if mode != "wal":
            raise UserError(f"votes={self.where!r}: its file system can't share memory; choose one of this machine")
        self._waiting: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="votes", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun by hand, and the writer's thread is not the one that connects.
        connection = sqlite3.connect(self._path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")  # what is committed outlives a power failure
        return connection

    def write(self, work: Work[T]) -> Future[T]:
        future: Future[T] = Future()
        self._waiting.put((work, future))
        return future

    def read(self, work: Work[T]) -> T:
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.execute("BEGIN")
                return work(_SqliteCursor(connection))
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{self.where}: {error}") from error

    def close(self) -> None:
        self._waiting.put(None)
        self._writer.join()
        self._connection.close()

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < TOGETHER and not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    last = True
                    break
                batch.append(more)
            # One whose asker has gone before it was begun is left out, and can't be taken back from here on.
            for future, result, error in self._done([one for one in batch if one[1].set_running_or_notify_cancel()]):
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            if last:
                return

    def _done(self, batch: Sequence[tuple[Work[Any], Future[Any]]]) -> list[tuple[Future[Any], Any, Exception | None]]:
        """(future, result, error) of each, after one transaction; work that fails takes no other with it."""
        found: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                self._connection.execute("SAVEPOINT one")
                try:
                    found.append((future, work(_SqliteCursor(self._connection)), None))
                except sqlite3.OperationalError:  # a full disk, say: SQLite may have undone all of it
                    raise
                except Exception as error:
                    self._connection.execute("ROLLBACK TO one")
                    found.append((future, None, error))
                self._connection.execute("RELEASE one")
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            told = Unavailable(f"{self.where}: {error}")
            return [(future, None, told) for _, future in batch]
        return found


class _PostgresCursor:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._cursor.execute(sql.replace("?", "%s"), values)
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        self._cursor.execute(sql.replace("?", "%s"), values)
        count: int = self._cursor.rowcount
        return count

    def alone(self) -> None:
        self._cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))


class Postgres:
    """A pool of connections; one that the server has closed is made anew."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
            from psycopg_pool import ConnectionPool
        except ImportError:
            raise UserError("votes=postgresql://…: needs psycopg; pip install 'mmdit-jax[arena]'") from None
        self._lost, self._refused = psycopg.OperationalError, psycopg.Error
        self.where = "postgresql://…"
        try:
            told = conninfo_to_dict(url)
            self.where = f"postgresql://{told.get('host', '')}:{told.get('port', '5432')}/{told.get('dbname', '')}"
            psycopg.connect(url, connect_timeout=int(BUSY_SECONDS)).close()  # a pool would try again for long
        except psycopg.Error as error:
            raise UserError(f"votes={self.where!r}: can't be reached ({' '.join(str(error).split())})") from None
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=CONNECTIONS,
            timeout=BUSY_SECONDS,
            check=ConnectionPool.check_connection,
            open=True,
        )
        self._threads = ThreadPoolExecutor(CONNECTIONS, "votes")

    def write(self, work: Work[T]) -> Future[T]:
        return self._threads.submit(self.read, work)

    def read(self, work: Work[T]) -> T:
        with self._told(), self._pool.connection() as connection, connection.cursor() as cursor:
            return work(_PostgresCursor(cursor))

    def close(self) -> None:
        self._threads.shutdown()
        self._pool.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._lost as error:  # the pool's timeout is one, too
            raise Unavailable(f"{self.where}: {error}") from error
        except self._refused as error:  # no right to make tables, say, which new versions give to few
            raise UserError(f"votes={self.where!r}: refused ({' '.join(str(error).split())})") from error
