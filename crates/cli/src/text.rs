//! Text from elsewhere, made fit for a terminal.

use api_types::date_time::DateTimeUtc;

/// `text` on one line, without what a terminal would obey or hide: control characters and those that turn the writing
/// direction are shown as escapes.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        let turns =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// A time to the second, for lists whose heading says that it is UTC.
pub(crate) fn seconds(time: DateTimeUtc) -> String {
    let text = time.to_string();
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
    whole.replacen('T', " ", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        let table = [
            ("IR-20771 über alles 機", "IR-20771 über alles 機"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7}\u{9b}31m", "\\u{1b}[2J\\u{7}\\u{9b}31m"),
            ("exe.\u{202e}fdp", "exe.\\u{202e}fdp"),
        ];
        for (input, output) in table {
            assert_eq!(printable(input), output);
        }
    }

    #[test]
    fn times_to_the_second() {
        assert_eq!(seconds("2026-03-02T08:14:55.1203341Z".parse().unwrap()), "2026-03-02 08:14:55");
    }
}
