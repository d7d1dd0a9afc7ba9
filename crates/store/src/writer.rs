//! The one thread that writes. Jobs that wait together share one transaction and one sync of the disk.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::checkpoint::Checkpoints;
use crate::{StoreError, Tx};

/// The most jobs in one transaction: beyond it a batch takes longer than the sync that it saves.
const BATCH_MAX: usize = 128;
/// The most jobs that wait; a caller beyond it waits itself.
const QUEUE_MAX: usize = 4096;

/// Runs inside the batch's transaction; whether it succeeded. Called again with none when the commit failed.
type Job = Box<dyn FnMut(Step<'_>) -> bool + Send>;

/// What a job is told.
enum Step<'a> {
    /// Do the work; true when it is to be kept.
    Work(&'a Connection),
    /// The batch is on the disk: answer the caller.
    Committed,
    /// The batch is lost: tell the caller.
    Lost(&'a str),
}

/// Sends jobs to the writing thread.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: SyncSender<Job>,
}

impl Writer {
    /// Starts the thread; it ends with the last sender.
    pub(crate) fn start(connection: Connection, checkpoints: Checkpoints) -> Result<Self, StoreError> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_batches(&connection, &checkpoints, &queue))
            .map_err(|error| StoreError::Unsupported(format!("cannot start the writing thread: {error}")))?;
        Ok(Self { jobs })
    }

    pub(crate) async fn run<T, E>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.send(job(work, move |result| drop(answer.send(result)))).await?;
        answered.await.unwrap_or_else(|_closed| Err(StoreError::Closed.into()))
    }

    pub(crate) fn queue(&self, work: impl FnOnce(&Tx<'_>) -> Result<(), StoreError> + Send + 'static) {
        // A job without a caller has nobody to tell of its failure; a full queue refuses it.
        drop(self.jobs.try_send(job(work, drop)));
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => Err(StoreError::Closed),
            Err(std::sync::mpsc::TrySendError::Full(job)) => {
                let jobs = self.jobs.clone();
                let sent = tokio::task::spawn_blocking(move || jobs.send(job).is_ok()).await;
                if matches!(sent, Ok(true)) { Ok(()) } else { Err(StoreError::Closed) }
            }
        }
    }
}

fn job<T, E>(
    work: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    answer: impl FnOnce(Result<T, E>) + Send + 'static,
) -> Job
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let mut work = Some(work);
    let mut answer = Some(answer);
    let mut result = None;
    Box::new(move |step| match step {
        Step::Work(connection) => {
            let Some(work) = work.take() else { return false };
            let outcome = work(&Tx::new(connection));
            let keep = outcome.is_ok();
            result = Some(outcome);
            keep
        }
        Step::Committed => {
            if let (Some(answer), Some(result)) = (answer.take(), result.take()) {
                answer(result);
            }
            true
        }
        Step::Lost(reason) => {
            let lost = || E::from(StoreError::Unavailable(sqlite_failure(reason)));
            if let Some(answer) = answer.take() {
                // A job that failed by itself keeps its own reason.
                answer(match result.take() {
                    Some(Err(error)) => Err(error),
                    Some(Ok(_)) | None => Err(lost()),
                });
            }
            false
        }
    })
}

fn sqlite_failure(reason: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
        Some(reason.to_owned()),
    )
}

fn write_batches(connection: &Connection, checkpoints: &Checkpoints, queue: &Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut batch: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).take(BATCH_MAX).collect();
        match write_batch(connection, &mut batch) {
            Ok(()) => batch.iter_mut().for_each(|job| {
                job(Step::Committed);
            }),
            Err(error) => {
                // Fails when no transaction is open, which is what is wanted.
                drop(connection.execute_batch("ROLLBACK"));
                let reason = error.to_string();
                batch.iter_mut().for_each(|job| {
                    job(Step::Lost(&reason));
                });
            }
        }
        checkpoints.committed(connection);
    }
}

fn write_batch(connection: &Connection, batch: &mut [Job]) -> rusqlite::Result<()> {
    begin(connection)?;
    for (index, job) in batch.iter_mut().enumerate() {
        // The first needs no savepoint, for which SQLite keeps a copy of every page that is changed: when it fails,
        // there is nothing but its own work to undo.
        let is_first = index == 0;
        if !is_first {
            connection.prepare_cached("SAVEPOINT job")?.execute([])?;
        }
        // A job that panics is a job that failed: its caller hears that the store closed on it.
        let keep =
            std::panic::catch_unwind(AssertUnwindSafe(|| job(Step::Work(connection)))).unwrap_or(false);
        if is_first {
            // SQLite itself gives a transaction up when the disk fails.
            let is_open = !connection.is_autocommit();
            if !keep {
                if is_open {
                    connection.prepare_cached("ROLLBACK")?.execute([])?;
                }
                begin(connection)?;
            } else if !is_open {
                return Err(sqlite_failure("the transaction was given up"));
            }
        } else {
            if !keep {
                connection.prepare_cached("ROLLBACK TO job")?.execute([])?;
            }
            connection.prepare_cached("RELEASE job")?.execute([])?;
        }
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    // Immediate: a transaction that starts by reading cannot wait for its turn to write.
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}
