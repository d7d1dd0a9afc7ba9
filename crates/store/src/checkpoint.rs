//! Checkpoints: what was committed is moved from the write-ahead log into the database.
//!
//! SQLite does it in the commit that fills the log, which makes a caller wait for the work of many. Here a thread does
//! it, and rather while nobody writes: a large change is answered first and moved then. Deliberately decides nothing
//! about durability: what is in the log is on the disk.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use crate::{StoreError, configure};

/// For so long nothing is committed until it counts as rest.
const REST: Duration = Duration::from_millis(150);

/// Numbers of pages.
#[derive(Clone, Copy)]
struct Limits {
    /// So many wait at least to be moved.
    min: i64,
    /// So many do not wait for rest.
    restless: i64,
    /// With so many in the log the writer waits until it can begin anew. It begins anew once all of it is moved, and
    /// behind a writer that never rests that would not come to be.
    log: i64,
}

/// SQLite's own number; 192 MiB, as restricting 10,000 machines takes 45,000 pages; 256 MiB.
const LIMITS: Limits = Limits { min: 1000, restless: 48 * 1024, log: 64 * 1024 };

/// Has checkpoints made.
pub(crate) struct Checkpoints {
    /// Holds one wish: a checkpoint moves all that is there.
    wishes: SyncSender<()>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Whoever makes a checkpoint has it.
    connection: Mutex<Connection>,
    /// How many pages waited to be moved after the last commit.
    waiting: AtomicI64,
    limits: Limits,
}

impl Checkpoints {
    /// Takes checkpoints over from the connection that writes. The thread ends with this.
    pub(crate) fn start(writer: &Connection, path: &Path) -> Result<Self, StoreError> {
        Self::start_within(LIMITS, writer, path)
    }

    fn start_within(limits: Limits, writer: &Connection, path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        configure(&connection)?;
        let shared =
            Arc::new(Shared { connection: Mutex::new(connection), waiting: AtomicI64::new(0), limits });
        let (wishes, wished) = sync_channel(1);
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("store-moves".to_owned())
            .spawn(move || of_thread.serve(&wished))
            .map_err(|error| StoreError::Unsupported(format!("cannot start the moving thread: {error}")))?;
        writer.pragma_update(None, "wal_autocheckpoint", 0)?;
        Ok(Self { wishes, shared })
    }

    /// To be called by the writer after each commit, outside of a transaction.
    pub(crate) fn committed(&self, writer: &Connection) {
        // Without an answer, it is asked again after the next commit.
        let Ok(log) = Log::look(writer) else { return };
        let waiting = log.pages - log.moved;
        self.shared.waiting.store(waiting, Ordering::Relaxed);
        if waiting > 0 && log.pages >= self.shared.limits.log {
            self.shared.checkpoint();
        } else if waiting >= self.shared.limits.min {
            // A wish that is there already stands for this one too.
            let (Ok(()) | Err(_)) = self.wishes.try_send(());
        }
    }
}

impl Shared {
    fn serve(&self, wished: &Receiver<()>) {
        while wished.recv().is_ok() {
            let is_restless = || self.waiting.load(Ordering::Relaxed) >= self.limits.restless;
            while !is_restless() && wished.recv_timeout(REST).is_ok() {}
            self.checkpoint();
        }
    }

    /// Moves what no reader needs in the log. What fails, or has to stay, is for the next time: the log holds it.
    fn checkpoint(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        drop(Log::after(&connection, "PRAGMA wal_checkpoint(PASSIVE)"));
    }
}

/// What the log holds.
struct Log {
    pages: i64,
    /// Those of them that are in the database by now.
    moved: i64,
}

impl Log {
    fn look(connection: &Connection) -> rusqlite::Result<Self> {
        Self::after(connection, "PRAGMA wal_checkpoint(NOOP)")
    }

    fn after(connection: &Connection, statement: &str) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare_cached(statement)?;
        statement.query_row([], |row| Ok(Self { pages: row.get("log")?, moved: row.get("checkpointed")? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(folder: &Path) -> (Connection, Checkpoints) {
        let path = folder.join("test.db");
        let writer = Connection::open(&path).unwrap();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer.execute_batch("CREATE TABLE t (value BLOB)").unwrap();
        let limits = Limits { min: 100, restless: 200, log: 400 };
        let checkpoints = Checkpoints::start_within(limits, &writer, &path).unwrap();
        (writer, checkpoints)
    }

    /// Commits a little more than so many pages.
    fn commit(writer: &Connection, checkpoints: &Checkpoints, pages: i64) {
        writer.execute("INSERT INTO t VALUES (zeroblob($1))", [pages * 4096]).unwrap();
        checkpoints.committed(writer);
    }

    #[test]
    fn what_waits_is_moved_and_the_log_begins_anew() {
        // At rest, and without it.
        for pages in [100, 200] {
            let folder = tempfile::tempdir().unwrap();
            let (writer, checkpoints) = database(folder.path());
            commit(&writer, &checkpoints, 50);
            assert_eq!(Log::look(&writer).unwrap().moved, 0);
            commit(&writer, &checkpoints, pages);
            while Log::look(&writer).unwrap().moved < 50 + pages {
                std::thread::yield_now();
            }
            commit(&writer, &checkpoints, 1);
            assert!(Log::look(&writer).unwrap().pages < 10);
        }
    }

    #[test]
    fn a_long_log_is_moved_before_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, checkpoints) = database(folder.path());
        commit(&writer, &checkpoints, 400);
        let log = Log::look(&writer).unwrap();
        assert!(log.pages > 400);
        assert_eq!(log.moved, log.pages);
    }

    #[test]
    fn a_reader_keeps_what_it_sees() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, checkpoints) = database(folder.path());
        let reader = Connection::open(folder.path().join("test.db")).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        let count = || reader.query_one("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count(), 0);
        commit(&writer, &checkpoints, 400);
        let log = Log::look(&writer).unwrap();
        assert!(log.moved < log.pages);
        assert_eq!(count(), 0);
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(count(), 1);
        checkpoints.committed(&writer);
        let log = Log::look(&writer).unwrap();
        assert_eq!(log.moved, log.pages);
    }
}
