//! What can go wrong in the store.

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is locked by another program, full, or its disk fails. Nothing was changed.
    #[error("the database cannot be used")]
    Unavailable(#[source] rusqlite::Error),
    /// A row would be there twice.
    #[error("it is there already")]
    Duplicate(#[source] rusqlite::Error),
    /// The statement is wrong, or the database is not what this program wrote.
    #[error("the database refused a statement")]
    Statement(#[source] rusqlite::Error),
    /// A query asks for what is not there: its caller is at fault.
    #[error("{0}")]
    Query(odata::Error),
    /// A stored value has no meaning.
    #[error("the database holds a value that has no meaning: {0}")]
    Damaged(String),
    /// This program must not use this database, or this SQLite.
    #[error("{0}")]
    Unsupported(String),
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        match error.sqlite_error_code() {
            Some(
                Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::DiskFull
                | Code::SystemIoFailure
                | Code::CannotOpen
                | Code::ReadOnly
                | Code::OutOfMemory
                | Code::DatabaseCorrupt
                | Code::NotADatabase,
            ) => Self::Unavailable(error),
            Some(Code::ConstraintViolation) => Self::Duplicate(error),
            _ => Self::Statement(error),
        }
    }
}
