//! What is told while a command works: lines on standard error, with a spinner below them on a terminal.
//!
//! Results never come here: they are for standard output, see `output`.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::text::printable;

/// Standard error.
#[derive(Default)]
pub(crate) struct Progress {
    spinner: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// Writes a line.
    pub(crate) fn note(&self, line: &str) {
        // Nothing is left to tell when standard error is gone.
        let write = || drop(writeln!(std::io::stderr(), "{}", printable(line)));
        match &*self.spinner.borrow() {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }

    /// Shows what is waited for and for how long already, on a terminal.
    pub(crate) fn waiting(&self, what: &str) {
        let mut spinner = self.spinner.borrow_mut();
        let spinner = spinner.get_or_insert_with(|| {
            let spinner = ProgressBar::new_spinner().with_style(style());
            spinner.enable_steady_tick(Duration::from_millis(80));
            spinner
        });
        spinner.set_message(printable(what));
    }

    /// Takes the spinner away.
    pub(crate) fn waited(&self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    let spinner = ProgressStyle::default_spinner();
    // The template is a constant that parses; without it, the spinner still turns.
    ProgressStyle::with_template("{spinner} {wide_msg} {milliseconds}").unwrap_or(spinner).with_key(
        "milliseconds",
        |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A terminal that takes no text is not worth an error.
            _ = write!(out, "{} ms", state.elapsed().as_millis());
        },
    )
}
