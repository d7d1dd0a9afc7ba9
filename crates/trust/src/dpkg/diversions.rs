//! `diversions`: files that lie elsewhere than their package says, because another package, or the administrator,
//! claims their place. Three lines each: from, to, the package that claims (`:` for the administrator).

use std::io::{self, BufRead};

use super::lines::{Line, Lines};
use crate::shipped::clean_path;

/// The most diversions that are read.
const DIVERSIONS_MAX: usize = 100_000;

/// One diverted path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// The place that is claimed, absolute.
    pub from: Vec<u8>,
    /// Where all other packages' file of that name lies, absolute.
    pub to: Vec<u8>,
    /// The package that claims the place; `:` is no package.
    pub package: Vec<u8>,
}

/// Reads all diversions, and how many were malformed. Lines that cannot be counted in threes end the list: a file that
/// is looked for in the wrong place has the wrong content there, and is not vouched for.
///
/// # Errors
/// From the input.
pub fn read_diversions(input: impl BufRead) -> io::Result<(Vec<Diversion>, u64)> {
    let mut lines = Lines::new(input);
    let mut diversions = Vec::new();
    let mut malformed = 0;
    while diversions.len() < DIVERSIONS_MAX {
        let mut three = [const { Vec::new() }; 3];
        for (i, part) in three.iter_mut().enumerate() {
            match lines.next()? {
                Some(Line::Text(line)) => *part = line.to_vec(),
                None if i == 0 => return Ok((diversions, malformed)),
                Some(Line::TooLong) | None => return Ok((diversions, malformed + 1)),
            }
        }
        let [from, to, package] = three;
        let absolute = |path: &[u8]| path.strip_prefix(b"/").and_then(clean_path);
        match (absolute(&from), absolute(&to)) {
            (Some(from), Some(to)) => diversions.push(Diversion { from, to, package }),
            _ => malformed += 1,
        }
    }
    Ok((diversions, malformed + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threes_are_read_and_what_is_left_over_is_malformed() {
        let (read, malformed) =
            read_diversions(&b"/bin/sh\n/bin/sh.distrib\ndash\nx\n/y\n:\n/z\n"[..]).unwrap();
        let expected = Diversion {
            from: b"/bin/sh".to_vec(),
            to: b"/bin/sh.distrib".to_vec(),
            package: b"dash".to_vec(),
        };
        assert_eq!((read, malformed), (vec![expected], 2));
        assert_eq!(read_diversions(&b""[..]).unwrap(), (vec![], 0));
    }
}
