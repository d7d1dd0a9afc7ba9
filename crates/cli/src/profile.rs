//! The profile file: how to reach servers, and as whom. It holds secrets, so only its owner may read it.
//!
//! Tokens of people are kept here, so that a person signs in once; those of apps are never written anywhere.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::connection::{Secret, Trust};
use crate::oauth::{self, Grant};

/// The profile that is used when none is named.
pub(crate) const DEFAULT: &str = "default";

/// One server, and an app there, with its secret or a person's sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// `https://host:port`.
    pub(crate) server: String,
    /// The app.
    pub(crate) client_id: String,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_secret: Option<Secret>,
    /// SHA-256 of the only certificate authority that is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pin: Option<String>,
    /// The only certificate authorities that are trusted, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_certificates: Option<String>,
    /// A person's sign-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sign_in: Option<SignIn>,
}

/// A person's sign-in: the newest tokens, and how to get others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignIn {
    /// Where tokens come from: of the server itself, or of another issuer.
    pub(crate) token_endpoint: String,
    /// The only certificate authorities that another issuer is trusted by, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issuer_ca_certificates: Option<String>,
    /// What a token is to allow.
    pub(crate) scope: String,
    /// Whom it is for, where the scope does not say that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    /// The bearer token.
    pub(crate) access_token: Secret,
    /// When it ends, in seconds since 1970 by this machine's clock.
    pub(crate) access_token_ends: u64,
    /// For another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<Secret>,
}

impl SignIn {
    /// With the tokens of a grant; the old refresh token goes on counting when the grant has none.
    pub(crate) fn renewed(self, grant: Grant) -> Self {
        Self {
            access_token_ends: oauth::unix_seconds().saturating_add(grant.valid.as_secs()),
            access_token: grant.access_token,
            refresh_token: grant.refresh_token.or(self.refresh_token),
            ..self
        }
    }

    /// Who may vouch for another issuer.
    pub(crate) fn trust(&self) -> Trust {
        self.issuer_ca_certificates.clone().map_or(Trust::System, Trust::Certificates)
    }
}

/// The file with all profiles.
pub(crate) struct ProfileFile(PathBuf);

/// The file while no other run of this program changes it.
pub(crate) struct LockedProfiles<'a> {
    file: &'a ProfileFile,
    /// Unlocks when it is closed.
    _lock: File,
}

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
        self.lock()?.store(name, profile)
    }

    /// Removes the profile called `name`, and tells whether there was one. With the last one, the file goes too.
    pub(crate) fn remove(&self, name: &str) -> Result<bool> {
        if self.find(name)?.is_none() {
            return Ok(false);
        }
        let _locked = self.lock()?;
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

    /// Waits until no other run changes the file, and keeps others from it.
    pub(crate) fn lock(&self) -> Result<LockedProfiles<'_>> {
        let path = self.0.with_extension("lock");
        let locked = || -> std::io::Result<File> {
            self.make_folder()?;
            let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            lock.lock()?;
            Ok(lock)
        };
        let lock = locked().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(LockedProfiles { file: self, _lock: lock })
    }

    fn make_folder(&self) -> std::io::Result<()> {
        let folder = self.0.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
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
            self.make_folder()?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.0)?;
            Ok(())
        };
        written().with_context(|| format!("cannot write {path}"))
    }
}

impl LockedProfiles<'_> {
    /// The profile called `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Profile>> {
        self.file.find(name)
    }

    /// Keeps a profile in place of the one with the same name.
    pub(crate) fn store(&self, name: &str, profile: Profile) -> Result<()> {
        let mut profiles = self.file.read()?;
        profiles.profiles.insert(name.to_owned(), profile);
        self.file.write(&profiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(server: &str) -> Profile {
        Profile {
            server: server.to_owned(),
            client_id: "app".to_owned(),
            client_secret: Some(Secret::from("s3cret")),
            ca_pin: None,
            ca_certificates: Some(
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
            ),
            sign_in: None,
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
