//! Lines of limited length.

use std::io::{self, BufRead, Read as _};

/// The longest line, in bytes. Dependency fields of a hundred kilobytes exist.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Reads lines into one buffer.
pub(crate) struct Lines<R> {
    input: R,
    line: Vec<u8>,
}

/// One line.
pub(crate) enum Line<'a> {
    /// Without its newline.
    Text(&'a [u8]),
    /// Longer than the limit; skipped.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, line: Vec::new() }
    }

    /// The next line, `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let length = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if length == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if length as u64 == LINE_BYTES_MAX {
            self.input.skip_until(b'\n')?;
            return Ok(Some(Line::TooLong));
        }
        Ok(Some(Line::Text(&self.line)))
    }
}
