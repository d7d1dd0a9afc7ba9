//! Reading a log while somebody writes it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::Result;

/// A log, read up to where it was read the last time.
pub struct Log {
    path: &'static str,
    read: u64,
}

impl Log {
    /// The log at this path, which need not be there yet.
    pub fn new(path: &'static str) -> Self {
        Self { path, read: 0 }
    }

    /// Its whole lines since the last call; one that is not whole yet comes the next time.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let Ok(log) = File::open(self.path) else { return Ok(Vec::new()) };
        let length = log.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(length.saturating_sub(self.read))?];
        log.read_exact_at(&mut bytes, self.read)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.read += u64::try_from(whole)?;
        let text = String::from_utf8_lossy(bytes.get(..whole).unwrap_or_default()).into_owned();
        Ok(text.lines().map(str::to_owned).collect())
    }
}
