//! `info/*.md5sums`: 32 hexadecimal digits, two spaces, a path without its leading slash.

use std::io::{self, BufRead};

use super::lines::{Line, Lines};
use super::{Md5Digest, parse_md5};
use crate::shipped::clean_path;

/// Calls `each` with every absolute path and its MD5. Answers how many lines were malformed: a name that holds a
/// newline cannot be written in this format, so its parts are malformed too and vouch for nothing.
///
/// # Errors
/// From the input.
pub fn read_md5sums(input: impl BufRead, each: &mut dyn FnMut(&[u8], Md5Digest)) -> io::Result<u64> {
    let mut lines = Lines::new(input);
    let mut malformed = 0;
    while let Some(line) = lines.next()? {
        let parsed = match line {
            Line::Text(line) => parse(line),
            Line::TooLong => None,
        };
        match parsed {
            Some((path, md5)) => each(&path, md5),
            None => malformed += 1,
        }
    }
    Ok(malformed)
}

fn parse(line: &[u8]) -> Option<(Vec<u8>, Md5Digest)> {
    let (md5, rest) = line.split_at_checked(32)?;
    let path = rest.strip_prefix(b"  ")?;
    Some((clean_path(path.strip_prefix(b"./").unwrap_or(path))?, parse_md5(md5)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_lines_are_counted_and_list_nothing() {
        let md5 = "00112233445566778899aAbBcCdDeEfF";
        let huge = "x".repeat(2 << 20);
        let good = format!("{md5}  usr/bin/a b\n{md5}  ./usr/bin/\u{fc}\n{md5}  last");
        let bad = [
            String::new(),
            format!("{md5} usr/bin/one-space"),
            format!("{md5} *usr/bin/binary"),
            format!("{md5}  "),
            format!("{md5}  /absolute"),
            format!("{md5}  a//b"),
            format!("{md5}  a/../b"),
            format!("{md5}  nul\0"),
            format!("\\{md5}  escaped\\nname"),
            format!("{}  usr/bin/short", md5.trim_start_matches("00")),
            format!("{}  usr/bin/letters", md5.replace('0', "g")),
            format!("{md5}  {}", "y".repeat(4096)),
            format!("{md5}  {huge}"),
        ];
        let mut seen = Vec::new();
        let text = format!("{}\n{good}", bad.join("\n"));
        let malformed = read_md5sums(text.as_bytes(), &mut |path, md5| {
            assert_eq!(md5[15], 0xff);
            seen.push(String::from_utf8(path.to_vec()).unwrap());
        });
        assert_eq!(malformed.unwrap(), bad.len() as u64);
        assert_eq!(seen, ["/usr/bin/a b", "/usr/bin/\u{fc}", "/last"]);
    }
}
