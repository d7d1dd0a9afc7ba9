//! Results on standard output: the API's own JSON for programs, tables for people.

use std::io::Write as _;
use std::rc::Rc;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::client::Listing;
use crate::http::Reply;
use crate::progress::Progress;
use crate::table::{Record, Table};

/// How results are printed. The variants have no documentation: clap would spread it over every `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// Standard output, in one format.
pub(crate) struct Output {
    format: Format,
    progress: Rc<Progress>,
}

impl Output {
    /// Results in `format`; remarks go to `progress`.
    pub(crate) fn new(format: Format, progress: Rc<Progress>) -> Self {
        Self { format, progress }
    }

    /// Prints an entity: `show` turns it into text for people.
    pub(crate) fn entity<T: DeserializeOwned>(
        &self,
        reply: &Reply,
        show: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        // The reply is understood before any of it is printed: what is not the API's never passes for a result.
        let entity = reply.decode()?;
        match self.format {
            Format::Json => write(reply.body.trim_end(), "\n"),
            Format::Table => write(&show(&entity), ""),
        }
    }

    /// Prints an entity: `table` turns it into a table for people.
    pub(crate) fn entity_table<T: DeserializeOwned>(
        &self,
        reply: &Reply,
        table: impl FnOnce(&T) -> Table,
    ) -> Result<()> {
        let entity = reply.decode()?;
        match self.format {
            Format::Json => write(reply.body.trim_end(), "\n"),
            Format::Table => self.table(&table(&entity)),
        }
    }

    /// Prints a list: `table` turns it into text for people.
    pub(crate) fn list<T: DeserializeOwned>(
        &self,
        listing: &Listing,
        table: impl FnOnce(&[T]) -> Table,
    ) -> Result<()> {
        let rows = listing.decode()?;
        match self.format {
            Format::Json => write(&serde_json::to_string(listing)?, "\n"),
            Format::Table => self.table(&table(&rows)),
        }
    }

    /// Prints one row of a list that does not end: JSON on a line of its own, or a line for people. Returns the row.
    pub(crate) fn row<T: DeserializeOwned>(
        &self,
        row: &RawValue,
        line: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        let item = serde_json::from_str(row.get())?;
        match self.format {
            Format::Json => write(row.get(), "\n")?,
            Format::Table => write(&line(&item), "\n")?,
        }
        Ok(item)
    }

    /// Prints what this program put together itself.
    pub(crate) fn made(&self, made: &impl Serialize, show: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Json => write(&serde_json::to_string(made)?, "\n"),
            Format::Table => write(&show(), ""),
        }
    }

    /// Prints what this program put together itself as a table.
    pub(crate) fn made_table(&self, made: &impl Serialize, table: impl FnOnce() -> Table) -> Result<()> {
        match self.format {
            Format::Json => write(&serde_json::to_string(made)?, "\n"),
            Format::Table => self.table(&table()),
        }
    }

    /// Text for people while a command goes on; nothing of it with JSON, whose one document comes at the end.
    pub(crate) fn tell(&self, text: &str) -> Result<()> {
        match self.format {
            Format::Json => Ok(()),
            Format::Table => write(text, ""),
        }
    }

    /// What this program put together itself, for programs only.
    pub(crate) fn json(&self, made: &impl Serialize) -> Result<()> {
        match self.format {
            Format::Json => write(&serde_json::to_string(made)?, "\n"),
            Format::Table => Ok(()),
        }
    }

    /// The reply to what has no entity, such as a deletion: its body, if it has one, and `done` for people.
    pub(crate) fn done(&self, reply: &Reply, done: &str) -> Result<()> {
        match self.format {
            Format::Json if reply.body.trim().is_empty() => Ok(()),
            Format::Json => write(&reply.body, "\n"),
            Format::Table => write(done, "\n"),
        }
    }

    /// A remark for people on standard error, such as what to do next.
    pub(crate) fn hint(&self, hint: &str) {
        match self.format {
            Format::Json => {}
            Format::Table => self.progress.note(hint),
        }
    }

    fn table(&self, table: &Table) -> Result<()> {
        let terminal = console::Term::stdout();
        let width = terminal.size_checked().filter(|_| terminal.is_term()).map(|(_, columns)| columns.into());
        let rendered = table.render(width);
        write(&rendered.text, "")?;
        if !rendered.hidden.is_empty() {
            self.hint(&format!(
                "not shown for want of width: {} (-o json has all)",
                rendered.hidden.join(", ")
            ));
        }
        Ok(())
    }
}

/// A record as text, for [`Output::entity`].
pub(crate) fn record<const N: usize>(fields: [(&'static str, Option<String>); N]) -> String {
    Record::new(fields).render()
}

/// Writes to standard output as it is.
pub(crate) fn write(text: &str, end: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(end.as_bytes())?;
    out.flush()?;
    Ok(())
}
