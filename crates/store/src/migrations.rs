//! The tables' history: each step is applied once, in order, and never changed after it was released.

use rusqlite::Connection;
use sha2::Digest as _;

use crate::StoreError;

/// Every step, oldest first. Append only.
const STEPS: &[(&str, &str)] = &[
    ("0001_first", include_str!("../migrations/0001_first.sql")),
    ("0002_access", include_str!("../migrations/0002_access.sql")),
    ("0003_lists", include_str!("../migrations/0003_lists.sql")),
    ("0004_sessions", include_str!("../migrations/0004_sessions.sql")),
    ("0005_policy_settings", include_str!("../migrations/0005_policy_settings.sql")),
    ("0006_break_glass", include_str!("../migrations/0006_break_glass.sql")),
    ("0007_preview", include_str!("../migrations/0007_preview.sql")),
    ("0008_impact_preview", include_str!("../migrations/0008_impact_preview.sql")),
];

/// Brings the tables up to date.
pub(crate) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL)",
    )?;
    let applied: Vec<(String, String)> = transaction
        .prepare("SELECT name, sha256 FROM migration ORDER BY name")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (index, (name, sha256)) in applied.iter().enumerate() {
        let Some((_, step)) = STEPS.get(index).filter(|(step, _)| step == name) else {
            let message = format!(
                "the database holds the step {name:?}, which this version does not know: use a newer one"
            );
            return Err(StoreError::Unsupported(message));
        };
        if *sha256 != digest(step) {
            return Err(StoreError::Unsupported(format!(
                "the step {name:?} is not the one that the database was made with"
            )));
        }
    }
    for (name, step) in STEPS.iter().skip(applied.len()) {
        transaction.execute_batch(step)?;
        transaction
            .execute("INSERT INTO migration (name, sha256) VALUES ($1, $2)", [*name, &digest(step)])?;
    }
    transaction.commit()?;
    Ok(())
}

fn digest(step: &str) -> String {
    hex::encode(sha2::Sha256::digest(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_applied_once_and_foreign_ones_are_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        run(&mut connection).unwrap();
        run(&mut connection).unwrap();
        connection.execute("INSERT INTO migration VALUES ('9999_future', '')", []).unwrap();
        assert!(matches!(run(&mut connection), Err(StoreError::Unsupported(_))));
        connection.execute("DELETE FROM migration WHERE name = '9999_future'", []).unwrap();
        connection.execute("UPDATE migration SET sha256 = 'changed'", []).unwrap();
        assert!(matches!(run(&mut connection), Err(StoreError::Unsupported(_))));
    }
}
