//! All SQL: tables, transactions, and what is read and written in them.
//!
//! Owns the database. Functions are named `noun_verb` and take a [`Tx`], so that a use case decides what belongs into
//! one transaction. Deliberately knows no rules: those are in `domain` and `control-plane`.
//!
//! One thread writes, in batches that share one commit; a few connections read; another thread moves what was
//! committed from the log into the database. What [`Store::write`] has answered is on the disk (`synchronous=FULL`).
#![forbid(unsafe_code)]

pub mod list;
pub mod machine;
pub mod machine_action;

mod access;
pub mod app;
pub mod audit_entry;
pub mod break_glass;
mod checkpoint;
pub mod enrollment_token;
mod error;
pub mod execution_event;
pub mod impact_preview;
pub mod machine_group;
mod migrations;
pub mod policy;
pub mod rate_limit;
mod reader;
pub mod role;
mod row;
pub mod session;
pub mod setting;
mod sql;
pub mod user;
mod writer;

use std::path::Path;

pub use error::StoreError;

use checkpoint::Checkpoints;
use reader::Readers;
use sql::Sql;
use writer::Writer;

/// A database with a writer and readers. Cloning is cheap; all clones are the same database.
#[derive(Clone)]
pub struct Store {
    writer: Writer,
    readers: Readers,
}

/// A transaction: what functions of this crate read and write in.
pub struct Tx<'a>(Sql<'a>);

impl<'a> Tx<'a> {
    fn new(connection: &'a rusqlite::Connection) -> Self {
        Self(Sql(connection))
    }
}

/// The oldest SQLite that loses no committed pages: 3.51.3 mends the WAL-reset race (sqlite.org/wal.html).
const SQLITE_VERSION_MIN: i32 = 3_051_003;

impl Store {
    /// Opens the database and brings its tables up to date; makes it when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] with an SQLite that loses data, or with tables of a newer Cordon;
    /// [`StoreError::Unavailable`] when the file cannot be used.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        require_sound_sqlite(rusqlite::version_number())?;
        let mut connection = rusqlite::Connection::open(path)?;
        configure(&connection)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        migrations::run(&mut connection)?;
        let checkpoints = Checkpoints::start(&connection, path)?;
        Ok(Self { writer: Writer::start(connection, checkpoints)?, readers: Readers::open(path)? })
    }

    /// Runs `job` in a transaction and answers once it is on the disk. A job that fails changes nothing; jobs that
    /// wait at the same time share a commit.
    ///
    /// # Errors
    /// The job's own; [`StoreError::Unavailable`] when the commit fails, and then nothing was changed.
    pub async fn write<T, E>(
        &self,
        job: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.writer.run(job).await
    }

    /// Queues `job` and does not wait for it. It is written before everything that is queued later.
    pub fn write_behind(&self, job: impl FnOnce(&Tx<'_>) -> Result<(), StoreError> + Send + 'static) {
        self.writer.queue(job);
    }

    /// Runs `job` on a reading connection: it sees one state of the database, all that was answered before included.
    ///
    /// # Errors
    /// The job's own; [`StoreError::Unavailable`] when no connection can be had.
    pub async fn read<T, E>(&self, job: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.readers.run(reader::Kind::Short, job).await
    }

    /// Like [`Store::read`], for what may look at very many rows: it does not hold up short reads.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_list<T, E>(
        &self,
        job: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.readers.run(reader::Kind::List, job).await
    }
}

fn require_sound_sqlite(version: i32) -> Result<(), StoreError> {
    if version < SQLITE_VERSION_MIN {
        return Err(StoreError::Unsupported(format!(
            "SQLite {version} can lose committed data (the WAL-reset race): {SQLITE_VERSION_MIN} is the oldest that may be used"
        )));
    }
    Ok(())
}

/// What every connection needs.
fn configure(connection: &rusqlite::Connection) -> Result<(), StoreError> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

/// Reads the setting `store_epoch`, which rises when a backup is restored.
///
/// # Errors
/// [`StoreError`].
pub fn store_epoch_fetch(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let text: String =
        tx.0.prepare_cached("SELECT value FROM setting WHERE name = 'store_epoch'")?
            .query_row([], |row| row.get(0))?;
    text.parse().map_err(|_unreadable| StoreError::Damaged(format!("store_epoch is {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_that_loses_data_is_refused() {
        assert!(require_sound_sqlite(3_051_002).is_err());
        require_sound_sqlite(3_051_003).unwrap();
        require_sound_sqlite(rusqlite::version_number()).unwrap();
    }
}
