//! The audit log: listed, and exported whole.

use api_types::audit_entry::AuditEntry;
use api_types::odata::Collection;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use control_plane::{Caller, ControlPlane};
use futures_util::stream;
use serde::Deserialize;
use store::audit_entry::AuditFilter;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::query::{self, Base};
use crate::state::AppState;

/// Entries that an export reads at a time.
const EXPORT_BATCH: u32 = 1000;

/// Which part of the list.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// How many at most.
    #[serde(default = "query::top_default")]
    #[param(minimum = 1, maximum = 1000, example = 100)]
    top: u32,
    /// Only those with a lower number.
    #[param(nullable = false, example = 4711)]
    before: Option<i64>,
    /// Only those at this time or later.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T08:00:00Z")]
    since: Option<String>,
    /// Only those before this time.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T09:00:00Z")]
    until: Option<String>,
    /// Only those of this app or person.
    #[param(nullable = false, example = "ann@example.org")]
    actor: Option<String>,
    /// Only those of this operation.
    #[param(nullable = false, example = "machine_restrict")]
    operation: Option<String>,
    /// Only those about this, such as a machine id.
    #[param(nullable = false, example = "0f3c9a7be1d2445566778899aabbccddeeff0011")]
    subject: Option<String>,
}

/// Which entries are exported, and how.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuditExportQuery {
    /// `jsonl`, which is the default, or `csv`.
    #[serde(default)]
    #[param(required = false, inline)]
    format: ExportFormat,
    /// Only those at this time or later.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T08:00:00Z")]
    since: Option<String>,
    /// Only those before this time.
    #[param(nullable = false, format = "date-time", example = "2026-01-31T09:00:00Z")]
    until: Option<String>,
    /// Only those of this app or person.
    #[param(nullable = false, example = "ann@example.org")]
    actor: Option<String>,
    /// Only those of this operation.
    #[param(nullable = false, example = "machine_restrict")]
    operation: Option<String>,
    /// Only those about this, such as a machine id.
    #[param(nullable = false, example = "0f3c9a7be1d2445566778899aabbccddeeff0011")]
    subject: Option<String>,
}

/// How entries are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
enum ExportFormat {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// RFC 4180, with a head.
    Csv,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    base: Base,
    uri: Uri,
) -> Result<Json<Collection<AuditEntry>>, ApiError> {
    let part: AuditQuery = query::parameters(&uri)?;
    let (since, until) = query::between(part.since.as_ref(), part.until.as_ref())?;
    let filter = AuditFilter {
        before: part.before,
        since,
        until,
        actor: part.actor,
        operation: part.operation,
        subject: part.subject,
        top: query::checked_top(part.top)?,
    };
    let entries = page(&state.control, &caller, filter).await?;
    Ok(base.page_before(&uri, part.top, entries, |entry| entry.id))
}

pub(crate) async fn export(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let part: AuditExportQuery = query::parameters(&uri)?;
    let (since, until) = query::between(part.since.as_ref(), part.until.as_ref())?;
    let filter = AuditFilter {
        before: None,
        since,
        until,
        actor: part.actor,
        operation: part.operation,
        subject: part.subject,
        top: EXPORT_BATCH,
    };
    let format = part.format;
    // The first page is read before the head of the reply is sent: what is refused is refused properly.
    let first = page(&state.control, &caller, filter.clone()).await?;
    let state = Export { control: state.control, caller, filter, format, next: Some(first), is_first: true };
    let body = Body::from_stream(stream::try_unfold(state, Export::batch));
    let (media_type, file) = match format {
        ExportFormat::Jsonl => ("application/jsonl", "attachment; filename=\"audit.jsonl\""),
        ExportFormat::Csv => {
            ("text/csv; charset=utf-8; header=present", "attachment; filename=\"audit.csv\"")
        }
    };
    let headers = [(header::CONTENT_TYPE, media_type), (header::CONTENT_DISPOSITION, file)];
    Ok((headers, body).into_response())
}

async fn page(
    control: &ControlPlane,
    caller: &Caller,
    filter: AuditFilter,
) -> control_plane::Result<Vec<AuditEntry>> {
    let entries = control.audit_entry_list(caller, filter).await?;
    Ok(entries.into_iter().map(|(id, entry)| AuditEntry::numbered(id, entry)).collect())
}

/// An export under way.
struct Export {
    control: ControlPlane,
    caller: Caller,
    filter: AuditFilter,
    format: ExportFormat,
    /// The entries to write next; none when they are still to be read.
    next: Option<Vec<AuditEntry>>,
    is_first: bool,
}

impl Export {
    async fn batch(mut self) -> control_plane::Result<Option<(Bytes, Self)>> {
        let entries = match self.next.take() {
            Some(entries) => entries,
            None => page(&self.control, &self.caller, self.filter.clone()).await?,
        };
        let mut text = String::new();
        if self.is_first && self.format == ExportFormat::Csv {
            text += "id,dateTimeUtc,actor,operation,subject,detail\r\n";
        }
        let Some(last) = entries.last() else {
            // An empty export has its head all the same.
            let is_over = text.is_empty();
            self.is_first = false;
            return Ok((!is_over).then(|| (Bytes::from(text), self)));
        };
        self.filter.before = Some(last.id);
        self.is_first = false;
        for entry in &entries {
            match self.format {
                ExportFormat::Jsonl => {
                    text += &serde_json::to_string(entry).unwrap_or_default();
                    text += "\n";
                }
                ExportFormat::Csv => text += &csv_line(entry),
            }
        }
        Ok(Some((Bytes::from(text), self)))
    }
}

fn csv_line(entry: &AuditEntry) -> String {
    let at = serde_json::to_value(entry.date_time_utc).unwrap_or_default();
    let cells = [
        entry.id.to_string(),
        at.as_str().unwrap_or_default().to_owned(),
        csv_cell(&entry.actor),
        csv_cell(&entry.operation),
        csv_cell(&entry.subject),
        csv_cell(&entry.detail),
    ];
    cells.join(",") + "\r\n"
}

/// A text in quotes. One that a spreadsheet would take for a formula gets an apostrophe in front.
fn csv_cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::csv_cell;

    #[test]
    fn cells_are_quoted_and_are_no_formulas() {
        for (text, cell) in [
            ("plain", "\"plain\""),
            ("a \"b\", c\n", "\"a \"\"b\"\", c\n\""),
            ("=HYPERLINK(1)", "\"'=HYPERLINK(1)\""),
            ("@x", "\"'@x\""),
            ("", "\"\""),
        ] {
            assert_eq!(csv_cell(text), cell);
        }
    }
}
