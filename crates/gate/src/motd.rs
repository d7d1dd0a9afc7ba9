//! What people read when they log in to a restricted machine: a file that `pam_motd(8)` shows, as Debian, Ubuntu and
//! Fedora are set up.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use domain::policy_settings::Notice;

/// The message's place below the system's root.
const PLACE: &str = "run/motd.d/cordon";

/// The message of a machine.
#[derive(Debug, Clone)]
pub struct Motd(PathBuf);

impl Motd {
    /// That of the system below `root`.
    pub fn of(root: &Path) -> Self {
        Self(root.join(PLACE))
    }

    /// Shows what the policy says, or shows nothing. A machine whose message cannot be written is restricted all the
    /// same.
    pub fn show(&self, notice: Option<&Notice>) {
        let done = match notice.filter(|notice| !notice.silent) {
            Some(notice) => self.write(&text(notice)),
            None => match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        if let Err(error) = done {
            log!("{} cannot be kept up: {error}", self.0.display());
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
            // The gate's own files are for nobody else, this one is for everybody.
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        let beside = self.0.with_extension("new");
        fs::write(&beside, text)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
        fs::rename(&beside, &self.0)
    }
}

/// What people are told, in their terms. Words of a policy hold no control characters: see `PolicySettings`.
fn text(notice: &Notice) -> String {
    let words = if notice.text.is_empty() {
        "This machine is restricted: programs that are not approved do not start."
    } else {
        &notice.text
    };
    let contact =
        if notice.contact.is_empty() { String::new() } else { format!("Contact: {}\n", notice.contact) };
    format!("\n*** Cordon ***\n{words}\n{contact}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_comes_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let motd = Motd::of(root.path());
        let shown = || fs::read_to_string(root.path().join(PLACE)).ok();
        motd.show(None);
        assert_eq!(shown(), None);
        motd.show(Some(&Notice::default()));
        assert!(shown().unwrap().contains("programs that are not approved do not start"));
        let own = Notice { text: "Stay calm.".to_owned(), contact: "4711".to_owned(), silent: false };
        motd.show(Some(&own));
        assert_eq!(shown().unwrap(), "\n*** Cordon ***\nStay calm.\nContact: 4711\n\n");
        let mode = fs::metadata(root.path().join(PLACE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        motd.show(Some(&Notice { silent: true, ..own }));
        assert_eq!(shown(), None);
    }
}
