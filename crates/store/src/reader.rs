//! Reading connections: few, reused, each on a blocking thread while it is in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{StoreError, Tx, configure};

/// How many read at once: more than the cores of a small server gain nothing.
const CONNECTIONS: usize = 4;
/// How many lists of these: one may have to look at every row, and must not hold up orders and logins.
const LISTS: usize = 2;

/// How long a read may take.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A few rows, found by an index.
    Short,
    /// As many rows as the caller likes.
    List,
}

/// A pool of reading connections.
#[derive(Clone)]
pub(crate) struct Readers {
    path: Arc<PathBuf>,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    list_permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let readers = Self {
            path: Arc::new(path.to_owned()),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            list_permits: Arc::new(Semaphore::new(LISTS)),
        };
        readers.put_back(readers.connect()?);
        Ok(readers)
    }

    pub(crate) async fn run<T, E>(
        &self,
        kind: Kind,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let list_permit = match kind {
            Kind::Short => None,
            Kind::List => Some(acquire(&self.list_permits).await?),
        };
        let permit = acquire(&self.permits).await?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permits = (permit, list_permit);
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => readers.connect()?,
            };
            let transaction = connection.transaction().map_err(StoreError::from)?;
            let result = work(&Tx::new(&transaction));
            // A transaction that only read has nothing to keep; ending it frees the state that it saw.
            drop(transaction);
            readers.put_back(connection);
            result
        });
        // The work panicked: its connection is gone with it, and another will be opened.
        done.await.unwrap_or_else(|_panicked| Err(StoreError::Closed.into()))
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.path.as_path(), flags)?;
        configure(&connection)?;
        Ok(connection)
    }

    fn put_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

async fn acquire(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, StoreError> {
    Arc::clone(permits).acquire_owned().await.map_err(|_closed| StoreError::Closed)
}
