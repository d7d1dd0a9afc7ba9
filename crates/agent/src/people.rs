//! Messages to the people who are logged in, on their terminals, as `wall(1)` writes them.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Group;

/// The most terminals that are written to.
const TERMINALS_MAX: usize = 256;
/// The longest message, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 1000;
/// How wide a line is.
const LINE_WIDTH: usize = 78;

/// Writes the message to every terminal that accepts messages: its group is `tty`, and the group may write (`mesg y`).
/// Answers how many there were. No terminal can hold up the writer.
pub(crate) fn tell(message: &str) -> usize {
    let Ok(Some(group)) = Group::from_name("tty") else { return 0 };
    let text = rendered(message);
    let accepts = |path: &PathBuf| accepts_messages(path, group.gid.as_raw());
    terminals().filter(accepts).take(TERMINALS_MAX).filter(|path| write(path, &text)).count()
}

/// The pseudo terminals, and the terminals of the console.
fn terminals() -> impl Iterator<Item = PathBuf> {
    let named = |folder: &str, prefix: &'static str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(move |path| {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(prefix));
            name.is_some_and(|rest| rest.bytes().any(|byte| byte.is_ascii_digit()))
        })
    };
    named("/dev/pts", "").chain(named("/dev", "tty"))
}

fn accepts_messages(path: &Path, group: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.file_type().is_char_device() && metadata.gid() == group && metadata.mode() & 0o020 != 0
    })
}

fn write(path: &Path, text: &str) -> bool {
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW).bits();
    let open = |path: &Path| -> std::io::Result<File> {
        OpenOptions::new().write(true).custom_flags(flags).open(path)
    };
    // A terminal that is full, or gone, misses the message.
    open(path).and_then(|mut file| file.write_all(text.as_bytes())).is_ok()
}

/// The message in lines that a terminal in any mode shows, without anything that could control it.
fn rendered(message: &str) -> String {
    let mut lines = vec![String::new()];
    let clean: String =
        message.chars().take(MESSAGE_CHARACTERS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    for word in clean.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    format!("\r\n\u{7}*** Cordon ***\r\n{}\r\n\r\n", lines.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_wrapped_and_harmless() {
        let text = rendered(&format!("a\x1b[2Jb\nc {}", "word ".repeat(1000)));
        assert!(text.starts_with("\r\n\u{7}*** Cordon ***\r\na [2Jb c word"), "{text:?}");
        assert!(text.len() < 1200);
        assert!(text.split("\r\n").all(|line| line.chars().count() <= LINE_WIDTH));
        assert!(!text.contains('\x1b'));
    }

    /// A pseudo terminal of our own accepts the message when its mode says so, and only then.
    #[test]
    fn only_terminals_that_accept_messages_get_them() {
        let Ok(Some(group)) = Group::from_name("tty") else { panic!("there is no group tty") };
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("tty1");
        fs::write(&plain, "").unwrap();
        assert!(!accepts_messages(&plain, group.gid.as_raw()), "not a device");
        assert!(!accepts_messages(Path::new("/dev/null"), group.gid.as_raw()), "another group");
        assert!(write(&plain, "x"));
        assert!(!write(&folder.path().join("absent"), "x"));
    }
}
