//! What a caller is told about a query that cannot be used.

/// A query option that cannot be used: which one, where in it, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}, position {position}: expected {expected}, found {found}")]
pub struct Error {
    /// The option, such as `$filter`.
    pub option: String,
    /// The character of the decoded value, counted from 1.
    pub position: usize,
    /// What would have been right.
    pub expected: String,
    /// What is there, cut short.
    pub found: String,
}

/// The most characters of a caller's text that are said back.
const EXCERPT_CHARS_MAX: usize = 24;

impl Error {
    /// An error at a place in the decoded value of an option.
    ///
    /// `at` is a byte offset; one that is no character's start counts as the end.
    pub(crate) fn at(option: &str, value: &str, at: usize, expected: impl Into<String>) -> Self {
        let (before, rest) = value.split_at_checked(at).unwrap_or((value, ""));
        let found = if rest.is_empty() { "the end".to_owned() } else { excerpt(rest) };
        Self {
            option: option.to_owned(),
            position: before.chars().count() + 1,
            expected: expected.into(),
            found,
        }
    }
}

/// The start of a text, quoted and escaped.
pub(crate) fn excerpt(text: &str) -> String {
    let start: String = text.chars().take(EXCERPT_CHARS_MAX).collect();
    let dots = if start.len() < text.len() { "..." } else { "" };
    format!("{start:?}{dots}")
}
