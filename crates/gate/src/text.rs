//! Text that people see.

/// The longest escaped path, in bytes, so that a full reply fits into a frame.
const PATH_BYTES_MAX: usize = 4096;

/// A path as text that no terminal and no log can be tricked with; cut to what is bearable.
pub fn escaped(path: &[u8]) -> String {
    escaped_within(path, PATH_BYTES_MAX)
}

/// [`escaped`], cut to `bytes_max`.
pub fn escaped_within(path: &[u8], bytes_max: usize) -> String {
    let mut text = String::new();
    let mut add = |piece: &str| {
        let fits = text.len() + piece.len() <= bytes_max;
        if fits {
            text.push_str(piece);
        }
        fits
    };
    'path: for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            let plain = !c.is_control() && c != '\\';
            let piece = if plain { c.to_string() } else { c.escape_default().to_string() };
            if !add(&piece) {
                break 'path;
            }
        }
        for byte in chunk.invalid() {
            if !add(&format!("\\x{byte:02x}")) {
                break 'path;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn hostile_names_become_plain_text() {
        assert_eq!(escaped(b"/tmp/a\nb\x1b[2J"), "/tmp/a\\nb\\u{1b}[2J");
        assert_eq!(escaped(b"/tmp/\xff\\"), "/tmp/\\xff\\\\");
        for byte in [b'a', b'\n', b'\\', 0xff, 0xe2] {
            assert!((4090..=4096).contains(&escaped(&[byte; 100_000]).len()));
        }
    }
}
