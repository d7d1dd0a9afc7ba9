//! Which programs a unit of systemd starts (`systemd.unit(5)`, `systemd.service(5)`): the text of unit files, and nothing
//! else. Reads no file, so that it can be given anything.

/// The most programs of one unit.
const PROGRAMS_MAX: usize = 64;
/// The longest name of a program, in bytes: the kernel's `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;

/// What a unit file says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitFile {
    /// What has to run before the service counts as started: absolute paths without `..`, or names to be looked for
    /// where programs are.
    pub programs: Vec<Vec<u8>>,
    /// The service that a socket starts, when it names one.
    pub service: Option<String>,
    /// Whether a socket starts a service for each connection.
    pub accepts: bool,
}

impl UnitFile {
    /// Reads a unit's text, with that of its drop-ins after it. What is not understood is passed over: systemd does the
    /// same.
    pub fn read<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut unit = Self::default();
        // Each command has a list of its own, which an empty assignment empties.
        let mut commands: [(&[u8], Vec<Vec<u8>>); 3] =
            [(b"ExecStart", Vec::new()), (b"ExecStartPre", Vec::new()), (b"ExecStartPost", Vec::new())];
        for text in texts {
            let mut section: Vec<u8> = Vec::new();
            for line in lines(text) {
                if let Some(name) = line.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
                    section = name.to_vec();
                    continue;
                }
                let Some(at) = line.iter().position(|byte| *byte == b'=') else { continue };
                let (key, value) = line.split_at(at);
                let (key, value) = (key.trim_ascii(), value.get(1..).unwrap_or_default().trim_ascii());
                match (section.as_slice(), key) {
                    (b"Service", key) => {
                        let Some((_, list)) = commands.iter_mut().find(|(command, _)| *command == key) else {
                            continue;
                        };
                        if value.is_empty() {
                            list.clear();
                        } else if list.len() < PROGRAMS_MAX {
                            list.extend(program(value));
                        }
                    }
                    (b"Socket", b"Service") => {
                        unit.service =
                            std::str::from_utf8(value).ok().filter(|name| is_name(name)).map(str::to_owned);
                    }
                    (b"Socket", b"Accept") => unit.accepts = matches!(value, b"yes" | b"true" | b"on" | b"1"),
                    _ => {}
                }
            }
        }
        unit.programs = commands.into_iter().flat_map(|(_, programs)| programs).collect();
        unit
    }
}

/// Whether this can be the name of a unit's file, and of nothing outside of its folder.
pub fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.contains('.')
        && !name.starts_with('.')
        && !name.contains(['/', '\0'])
}

/// The lines without comments, with those that go on after a backslash joined.
fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let mut begun: Option<Vec<u8>> = None;
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_comment = matches!(line.trim_ascii_start().first(), Some(b'#' | b';'));
        if is_comment {
            continue;
        }
        let mut joined = begun.take().unwrap_or_default();
        if let Some(rest) = line.strip_suffix(b"\\") {
            joined.extend(rest);
            joined.push(b' ');
            begun = Some(joined);
        } else {
            joined.extend(line);
            whole.push(joined.trim_ascii().to_vec());
        }
    }
    whole.extend(begun.map(|line| line.trim_ascii().to_vec()));
    whole.retain(|line| !line.is_empty());
    whole
}

/// The program of a command line: its first word, without the characters that say how it is started. None when it is
/// made of a specifier, which only systemd knows.
fn program(command: &[u8]) -> Option<Vec<u8>> {
    let start = command.iter().position(|byte| !b"@-:+!|".contains(byte))?;
    let word = first_word(command.get(start..)?)?;
    let mut path = Vec::new();
    let mut rest = word.as_slice();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            rest = tail.strip_prefix(b"%")?;
        }
        path.push(byte);
    }
    let is_clean = match path.strip_prefix(b"/") {
        Some(rest) => rest.split(|byte| *byte == b'/').all(|part| part != b".."),
        None => !path.contains(&b'/') && path != b".." && path != b".",
    };
    (is_clean && (1..=PATH_BYTES_MAX).contains(&path.len()) && !path.contains(&0)).then_some(path)
}

/// The first word, quotes and escapes undone; none when a quote does not end, or an escape means nothing.
fn first_word(text: &[u8]) -> Option<Vec<u8>> {
    let mut word = Vec::new();
    let mut quote = None;
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, quote) {
            (b'\\', _) => {
                let (byte, tail) = escaped(tail)?;
                word.push(byte);
                rest = tail;
            }
            (byte, Some(open)) if byte == open => quote = None,
            (b'"' | b'\'', None) => quote = Some(byte),
            (b' ' | b'\t', None) => break,
            (byte, _) => word.push(byte),
        }
    }
    quote.is_none().then_some(word)
}

/// What follows a backslash: the byte that is meant, and what comes after.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let (&first, rest) = text.split_first()?;
    let number = |digits: &[u8], radix| u8::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok();
    match first {
        b'\\' | b'"' | b'\'' => Some((first, rest)),
        b's' => Some((b' ', rest)),
        b't' => Some((b'\t', rest)),
        b'n' => Some((b'\n', rest)),
        b'x' => rest.split_at_checked(2).and_then(|(digits, rest)| Some((number(digits, 16)?, rest))),
        b'0'..=b'7' => text.split_at_checked(3).and_then(|(digits, rest)| Some((number(digits, 8)?, rest))),
        _ => None,
    }
}
