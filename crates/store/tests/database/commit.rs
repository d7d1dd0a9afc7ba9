//! What is kept together, what a commit holds, and what a reader sees.

use std::path::Path;
use std::sync::mpsc;

use store::audit_entry::{audit_entry_create, audit_entry_list};
use store::{Store, StoreError, Tx};
use tokio::task::JoinHandle;

use crate::fixture::{Database, enroll, entry, machine_id, newest};

/// Jobs that stand in the writer's queue until they are let go: they become one batch.
struct Queue {
    store: Store,
    let_go: mpsc::Sender<()>,
    first: JoinHandle<Result<(), StoreError>>,
}

impl Queue {
    async fn stop(database: &Database) -> Self {
        let (let_go, wait) = mpsc::channel();
        let (starts, started) = tokio::sync::oneshot::channel();
        let store = database.store.clone();
        let writer = store.clone();
        let first = tokio::spawn(async move {
            writer
                .write(move |_| {
                    starts.send(()).unwrap();
                    wait.recv().unwrap();
                    Ok(())
                })
                .await
        });
        started.await.unwrap();
        Self { store, let_go, first }
    }

    /// Puts a job into the queue. It is there when this returns: one thread runs the tasks, in turn.
    async fn add<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> JoinHandle<Result<T, StoreError>> {
        let store = self.store.clone();
        let task = tokio::spawn(async move { store.write(job).await });
        tokio::task::yield_now().await;
        task
    }

    async fn go(self) {
        self.let_go.send(()).unwrap();
        self.first.await.unwrap().unwrap();
    }
}

/// Subjects of all audit entries, oldest first.
async fn subjects(database: &Database) -> Vec<String> {
    let entries = database.read(|tx| audit_entry_list(tx, &newest(10_000))).await;
    entries.into_iter().rev().map(|(_, entry)| entry.subject).collect()
}

/// Counts the commits in a write-ahead log: frames that say how large the database is from then on
/// (sqlite.org/fileformat2.html, section 4).
fn commits(database: &Path) -> usize {
    let log = std::fs::read(database.with_extension("db-wal")).unwrap();
    let (header, frames) = log.split_first_chunk::<32>().unwrap();
    let page_bytes = u32::from_be_bytes(header[8..12].try_into().unwrap()) as usize;
    let current = frames.chunks_exact(24 + page_bytes).take_while(|frame| frame[8..16] == header[16..24]);
    current.filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn jobs_that_wait_together_share_one_commit() {
    let database = Database::new();
    let queue = Queue::stop(&database).await;
    let before = commits(&database.path());
    let mut jobs = Vec::new();
    for number in 0..100 {
        jobs.push(queue.add(move |tx| audit_entry_create(tx, &entry(&number.to_string()))).await);
    }
    queue.go().await;
    for job in jobs {
        job.await.unwrap().unwrap();
    }
    // The job that held up the others changed nothing, so its own commit wrote nothing.
    assert_eq!(commits(&database.path()) - before, 1);
    assert_eq!(subjects(&database).await, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_job_that_fails_or_panics_changes_nothing_and_its_neighbors_are_kept() {
    let database = Database::new();
    let queue = Queue::stop(&database).await;
    let write = |subject: &'static str| move |tx: &Tx<'_>| audit_entry_create(tx, &entry(subject));
    let one = queue.add(write("one")).await;
    let failed = queue
        .add(move |tx| {
            write("failed")(tx)?;
            Err::<(), _>(StoreError::Damaged("on purpose".to_owned()))
        })
        .await;
    let two = queue.add(write("two")).await;
    let panicked = queue
        .add(move |tx| {
            write("panicked")(tx)?;
            if true { panic!("on purpose") } else { Ok(()) }
        })
        .await;
    // An error of the database itself, after a change.
    let duplicate = queue
        .add(move |tx| {
            write("duplicate")(tx)?;
            enroll(tx, 1)?;
            store::machine_action::machine_action_create(tx, &crate::fixture::action(machine_id(1), 1), "o")?;
            store::machine_action::machine_action_create(tx, &crate::fixture::action(machine_id(1), 2), "o")
        })
        .await;
    let three = queue.add(write("three")).await;
    queue.go().await;
    for kept in [one, two, three] {
        kept.await.unwrap().unwrap();
    }
    assert!(matches!(failed.await.unwrap(), Err(StoreError::Damaged(_))));
    assert!(matches!(panicked.await.unwrap(), Err(StoreError::Closed)));
    assert!(matches!(duplicate.await.unwrap(), Err(StoreError::Duplicate(_))));
    assert_eq!(subjects(&database).await, ["one", "two", "three"]);
    assert_eq!(database.read(|tx| store::machine::machine_fetch(tx, machine_id(1))).await, None);
    // The writer goes on.
    database.write(write("four")).await;
    assert_eq!(database.reopened_subjects().await, ["one", "two", "three", "four"]);
}

#[tokio::test]
async fn the_first_job_of_a_commit_is_undone_without_the_others() {
    let database = Database::new();
    let write = |subject: &'static str| move |tx: &Tx<'_>| audit_entry_create(tx, &entry(subject));
    let queue = Queue::stop(&database).await;
    let failed = queue
        .add(move |tx| {
            write("failed")(tx)?;
            Err::<(), _>(StoreError::Damaged("on purpose".to_owned()))
        })
        .await;
    let one = queue.add(write("one")).await;
    queue.go().await;
    assert!(matches!(failed.await.unwrap(), Err(StoreError::Damaged(_))));
    one.await.unwrap().unwrap();
    let queue = Queue::stop(&database).await;
    let panicked = queue
        .add(move |tx| {
            write("panicked")(tx)?;
            if true { panic!("on purpose") } else { Ok(()) }
        })
        .await;
    let two = queue.add(write("two")).await;
    queue.go().await;
    assert!(matches!(panicked.await.unwrap(), Err(StoreError::Closed)));
    two.await.unwrap().unwrap();
    assert_eq!(database.reopened_subjects().await, ["one", "two"]);
}

impl Database {
    async fn reopened_subjects(self) -> Vec<String> {
        subjects(&self.reopened()).await
    }
}

#[tokio::test]
async fn a_batch_that_is_larger_than_a_transaction_takes_several() {
    let database = Database::new();
    let queue = Queue::stop(&database).await;
    let mut jobs = Vec::new();
    for number in 0..5000 {
        jobs.push(queue.add(move |tx| audit_entry_create(tx, &entry(&number.to_string()))).await);
    }
    queue.go().await;
    for job in jobs {
        job.await.unwrap().unwrap();
    }
    let mut found: Vec<u32> =
        subjects(&database).await.iter().map(|subject| subject.parse().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, (0..5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_answered_is_read_and_what_was_queued_behind_comes_before() {
    let database = Database::new();
    for number in 0..50 {
        database.store.write_behind(move |tx| audit_entry_create(tx, &entry(&format!("behind {number}"))));
        database.write(move |tx| audit_entry_create(tx, &entry(&format!("answered {number}")))).await;
        let newest = database.read(|tx| audit_entry_list(tx, &newest(2))).await;
        let newest: Vec<_> = newest.into_iter().map(|(_, entry)| entry.subject).collect();
        assert_eq!(newest, [format!("answered {number}"), format!("behind {number}")]);
    }
}

#[tokio::test]
async fn a_job_behind_that_fails_harms_nobody() {
    let database = Database::new();
    database.store.write_behind(|tx| {
        audit_entry_create(tx, &entry("lost"))?;
        Err(StoreError::Damaged("on purpose".to_owned()))
    });
    database.store.write_behind(|tx| {
        audit_entry_create(tx, &entry("lost"))?;
        panic!("on purpose")
    });
    database.write(|tx| audit_entry_create(tx, &entry("kept"))).await;
    assert_eq!(subjects(&database).await, ["kept"]);
}

#[tokio::test]
async fn a_read_sees_one_state_whatever_is_written_meanwhile() {
    let database = Database::new();
    let store = database.store.clone();
    let runtime = tokio::runtime::Handle::current();
    let counts = database
        .read(move |tx| {
            let before = audit_entry_list(tx, &newest(9))?.len();
            runtime.block_on(store.write(|tx| audit_entry_create(tx, &entry("meanwhile"))))?;
            Ok((before, audit_entry_list(tx, &newest(9))?.len()))
        })
        .await;
    assert_eq!(counts, (0, 0));
    assert_eq!(subjects(&database).await, ["meanwhile"]);
}

#[tokio::test]
async fn a_read_cannot_write_and_one_that_panics_is_answered() {
    let database = Database::new();
    let refused = database.store.read(|tx| audit_entry_create(tx, &entry("never"))).await;
    assert!(refused.is_err(), "{refused:?}");
    // More often than there are connections.
    for _ in 0..20 {
        let panicked = database.store.read(|_| -> Result<(), StoreError> { panic!("on purpose") }).await;
        assert!(matches!(panicked, Err(StoreError::Closed)));
    }
    assert!(subjects(&database).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_and_writers_work_side_by_side() {
    let database = Database::new();
    let tasks: Vec<_> = (0..64_u32)
        .map(|number| {
            let store = database.store.clone();
            tokio::spawn(async move {
                for round in 0..10 {
                    let subject = format!("{number}/{round}");
                    let written = subject.clone();
                    store.write(move |tx| audit_entry_create(tx, &entry(&written))).await?;
                    let seen = store.read(|tx| audit_entry_list(tx, &newest(10_000))).await?;
                    assert!(seen.iter().any(|(_, entry)| entry.subject == subject));
                }
                Ok::<_, StoreError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(subjects(&database).await.len(), 640);
}

#[tokio::test]
async fn a_use_case_fails_with_its_own_error() {
    #[derive(Debug, PartialEq)]
    enum Refusal {
        Busy,
        Store(String),
    }
    impl From<StoreError> for Refusal {
        fn from(error: StoreError) -> Self {
            Self::Store(error.to_string())
        }
    }
    let database = Database::new();
    let refused: Result<(), _> = database.store.write(|_| Err(Refusal::Busy)).await;
    assert_eq!(refused, Err(Refusal::Busy));
    let refused: Result<(), Refusal> = database.store.read(|_| Err(Refusal::Busy)).await;
    assert_eq!(refused, Err(Refusal::Busy));
}
