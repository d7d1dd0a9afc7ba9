//! The profile file: how to reach servers, and as whom. It holds secrets, so only its owner may read it.
//!
//! Tokens are never written anywhere.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::connection::Secret;

/// The profile that is used when none is named.
pub(crate) const DEFAULT: &str = "default";

/// One server, and an app there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// `https://host:port`.
    pub(crate) server: String,
    /// The app.
    pub(crate) client_id: String,
    /// Its secret.
    pub(crate) client_secret: Secret,
    /// SHA-256 of the only certificate authority that is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pin: Option<String>,
    /// The only certificate authorities that are trusted, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_certificates: Option<String>,
}

/// The file with all profiles.
pub(crate) struct ProfileFile(PathBuf);

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profiles {
    #[serde(default)]
    profiles: BTreeMap<String, Profile>,
}

impl ProfileFile {
    /// The file of this user: `$XDG_CONFIG_HOME/cordon/profile.toml`, by default in `~/.config`.
    pub(crate) fn of_user() -> Result<Self> {
        let config =
            std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
        let config = config.or_else(|| Some(std::env::home_dir()?.join(".config")));
        let config = config.context("no home folder for the profile: set HOME or XDG_CONFIG_HOME")?;
        Ok(Self(config.join("cordon").join("profile.toml")))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The profile called `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Profile>> {
        Ok(self.read()?.profiles.remove(name))
    }

    /// Keeps a profile in place of the one with the same name.
    pub(crate) fn store(&self, name: &str, profile: Profile) -> Result<()> {
        let mut file = self.read()?;
        file.profiles.insert(name.to_owned(), profile);
        self.write(&file)
    }

    /// Removes the profile called `name`, and tells whether there was one. With the last one, the file goes too.
    pub(crate) fn remove(&self, name: &str) -> Result<bool> {
        let mut file = self.read()?;
        if file.profiles.remove(name).is_none() {
            return Ok(false);
        }
        if file.profiles.is_empty() {
            std::fs::remove_file(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))?;
        } else {
            self.write(&file)?;
        }
        Ok(true)
    }

    fn read(&self) -> Result<Profiles> {
        let path = self.0.display();
        let mut file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Profiles::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot open {path}")),
        };
        let mode = file.metadata().with_context(|| format!("cannot examine {path}"))?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{path} holds secrets, and others may read or change it: chmod 600 {path}");
        }
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {path}"))?;
        // The error's own text quotes the line, which may hold a secret.
        toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(0, |before| before.matches('\n').count() + 1);
            anyhow::anyhow!(
                "{path} line {line}: {}: correct it, or sign in again after removing it",
                error.message()
            )
        })
    }

    /// Writes a file beside and renames it: nobody ever sees half a file, or one that others may read.
    fn write(&self, profiles: &Profiles) -> Result<()> {
        let path = self.0.display();
        let folder = self.0.parent().with_context(|| format!("{path} has no folder"))?;
        let text = toml::to_string(profiles)?;
        let written = || -> std::io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.0)?;
            Ok(())
        };
        written().with_context(|| format!("cannot write {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(server: &str) -> Profile {
        Profile {
            server: server.to_owned(),
            client_id: "app".to_owned(),
            client_secret: Secret::from("s3cret"),
            ca_pin: None,
            ca_certificates: Some(
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
            ),
        }
    }

    #[test]
    fn profiles_live_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let file = ProfileFile(folder.path().join("cordon/profile.toml"));
        assert_eq!(file.find("lab").unwrap(), None);
        file.store("lab", profile("https://lab")).unwrap();
        file.store("prod", profile("https://prod")).unwrap();
        file.store("lab", profile("https://lab-2")).unwrap();
        assert_eq!(file.find("lab").unwrap(), Some(profile("https://lab-2")));
        assert_eq!(file.find("prod").unwrap(), Some(profile("https://prod")));
        assert!(file.remove("lab").unwrap() && !file.remove("lab").unwrap());
        assert!(file.path().exists());
        assert!(file.remove("prod").unwrap());
        assert!(!file.path().exists());
    }

    #[test]
    fn faults_are_told_without_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = ProfileFile(folder.path().join("profile.toml"));
        file.store("lab", profile("https://lab")).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), text.replace("\"s3cret\"", "\"s3cret\" oops")).unwrap();
        let error = format!("{:#}", file.find("lab").unwrap_err());
        assert!(error.contains("line 4") && !error.contains("s3cret"), "{error}");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = format!("{:#}", file.find("lab").unwrap_err());
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", profile("https://lab")).contains("s3cret"));
    }
}
