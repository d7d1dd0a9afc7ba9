//! `cordon-server init`: from nothing to a server that can be used, and how to use it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use api_types::break_glass::BreakGlassCode;
use control_plane::{AppDraft, Caller};
use domain::permission::Permission;
use domain::time::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::agents::enrollment_command;
use crate::certificate_authority::CertificateAuthority;
use crate::config::Config;
use crate::data_dir::DataDirError;
use crate::issuer::KeyFolder;
use crate::routes;
use crate::server::{ISSUER_KEYS, Parts, StartError};
use crate::state::now;

/// How many machines the first enrollment token admits, and for how long.
const TOKEN_USES: u32 = 100;
const TOKEN_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// What an operator asks of `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InitOptions {
    /// The tenant's id, for clients that are to keep theirs. Made when absent.
    pub tenant: Option<Uuid>,
    /// What to do when there are apps already.
    pub apps: ExistingApps,
}

/// What to do when there are apps already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExistingApps {
    /// Change nothing.
    #[default]
    Refuse,
    /// Make one more administrator, for whoever lost the secret of theirs.
    AddAdministrator,
}

/// What an operator needs to go on. Its secrets are shown this once.
#[derive(Serialize)]
pub struct Initialized {
    /// Where the API is.
    pub url: String,
    /// The tenant's id, part of the token URLs.
    pub tenant: Uuid,
    /// The administrator's id.
    pub client_id: Uuid,
    /// The administrator's secret.
    pub client_secret: String,
    /// SHA-256 of the authority's certificate.
    pub ca_pin: String,
    /// The file of the authority's certificate.
    pub ca_certificate: PathBuf,
    /// The secret with which machines enroll.
    pub enrollment_token: String,
    /// What to run on a machine.
    pub enrollment_command: String,
}

/// Why nothing was initialized.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is nothing to initialize.
    #[error(
        "{} is in use already (apps: {apps}). To make a further administrator app, run init again with --force-new-app",
        .data_dir.display()
    )]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// How many apps it has.
        apps: usize,
    },
    /// The tenant is another one.
    #[error("the tenant is {found} already and cannot become another")]
    OtherTenant {
        /// The tenant that is.
        found: Uuid,
    },
    /// The parts of the server cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Makes the data folder with all keys, the database, the first administrator app and an enrollment token.
///
/// # Errors
/// [`InitError`].
pub async fn init(config: &Config, options: InitOptions) -> Result<Initialized, InitError> {
    let parts = Parts::open(config, options.tenant).await?;
    if options.tenant.is_some_and(|wanted| wanted != parts.tenant) {
        return Err(InitError::OtherTenant { found: parts.tenant });
    }
    let operator = Caller::operator();
    let apps = parts.control.app_list(&operator).await.map_err(StartError::from)?;
    if !apps.is_empty() && options.apps == ExistingApps::Refuse {
        return Err(InitError::InUse { data_dir: config.data_dir.clone(), apps: apps.len() });
    }
    let name = app_name(apps.len(), now());
    let draft = AppDraft {
        name,
        permissions: Permission::ALL.to_vec(),
        is_public: false,
        redirect_uris: Vec::new(),
        machine_groups: None,
        bulk_machines_max: None,
    };
    let (app, client_secret) = parts.control.app_create(&operator, draft).await.map_err(StartError::from)?;
    // An app that is not public has one.
    let client_secret = client_secret.unwrap_or_default();
    let (_, enrollment_token) = parts
        .control
        .enrollment_token_create(&operator, TOKEN_USES, TOKEN_VALIDITY, "made by init".to_owned())
        .await
        .map_err(StartError::from)?;
    let ca_pin = parts.authority.pin();
    Ok(Initialized {
        url: config.public_url.clone(),
        tenant: parts.tenant,
        client_id: app.id,
        client_secret,
        enrollment_command: enrollment_command(&config.public_url, &enrollment_token, &ca_pin),
        ca_pin,
        ca_certificate: CertificateAuthority::certificate_path(&parts.data),
        enrollment_token,
    })
}

/// Shows the next break-glass code of a machine (id or name), as whoever may run the server's command line.
///
/// # Errors
/// When the folder is in use by a server that runs, and as the API's operation.
pub async fn break_glass_code(config: &Config, machine: &str) -> Result<BreakGlassCode, StartError> {
    let parts = Parts::open(config, None).await?;
    Ok(routes::break_glass::wire(parts.control.break_glass_code_show(&Caller::operator(), machine).await?))
}

/// Replaces the issuer's keys: every token that was issued so far ends. A running server follows within a minute.
///
/// # Errors
/// [`DataDirError`].
pub fn rotate_keys(config: &Config) -> Result<(), DataDirError> {
    KeyFolder::new(config.data_dir.join(ISSUER_KEYS)).replace_all(now())
}

/// Unique among the apps, whatever was revoked.
fn app_name(existing: usize, now: Timestamp) -> String {
    if existing == 0 { "administrator".to_owned() } else { format!("administrator {}", now.ticks()) }
}

impl fmt::Display for Initialized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, tenant, client_id, client_secret, ca_pin, enrollment_command, .. } = self;
        let ca = self.ca_certificate.display();
        writeln!(f, "The server will be at     {url}")?;
        writeln!(f, "Certificate authority     {ca}")?;
        writeln!(f, "  its SHA-256 (the pin)   {ca_pin}")?;
        writeln!(f, "Tenant                    {tenant}")?;
        writeln!(f, "Administrator app")?;
        writeln!(f, "  client_id               {client_id}")?;
        writeln!(f, "  client_secret           {client_secret}")?;
        writeln!(f, "\nThe secrets are shown this once. Start the server, then use it:")?;
        writeln!(f, "  export CORDON_SERVER={url} CORDON_CA_FILE={ca}")?;
        writeln!(f, "  export CORDON_CLIENT_ID={client_id} CORDON_CLIENT_SECRET={client_secret}")?;
        writeln!(f, "  cordon machine list")?;
        writeln!(f, "\nEnroll a machine, as root on it ({TOKEN_USES} machines within 24 hours):")?;
        writeln!(f, "  {enrollment_command}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &std::path::Path) -> Config {
        Config {
            data_dir: folder.join("server"),
            public_url: "https://cordon.example:8443".to_owned(),
            ..Config::default()
        }
    }

    #[tokio::test]
    async fn what_is_printed_is_the_contract_with_scripts() {
        let folder = tempfile::tempdir().unwrap();
        let made = init(&config(folder.path()), InitOptions::default()).await.unwrap();
        let json = serde_json::to_value(&made).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "ca_certificate",
            "ca_pin",
            "client_id",
            "client_secret",
            "enrollment_command",
            "enrollment_token",
            "tenant",
            "url",
        ];
        assert_eq!(fields, expected);
        let text = made.to_string();
        for value in json.as_object().unwrap().values() {
            assert!(text.contains(value.as_str().unwrap()), "{value} in {text}");
        }
        assert!(made.ca_certificate.is_file());
    }

    #[tokio::test]
    async fn a_second_init_changes_nothing_unless_asked_for_an_app() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let tenant = Uuid::from_u128(7);
        let options = InitOptions { tenant: Some(tenant), ..InitOptions::default() };
        let first = init(&config, options).await.unwrap();
        assert_eq!(first.tenant, tenant);
        let refused = init(&config, InitOptions::default()).await;
        assert!(matches!(refused, Err(InitError::InUse { apps: 1, .. })));
        let options = InitOptions { tenant: Some(Uuid::nil()), apps: ExistingApps::AddAdministrator };
        let refused = init(&config, options).await;
        assert!(matches!(refused, Err(InitError::OtherTenant { found }) if found == tenant));
        let second = init(&config, InitOptions { tenant: None, ..options }).await.unwrap();
        assert_eq!((second.tenant, &second.ca_pin), (tenant, &first.ca_pin));
        let parts = Parts::open(&config, None).await.unwrap();
        for made in [first, second] {
            let app = parts.control.app_authenticate(made.client_id, &made.client_secret).await.unwrap();
            assert_eq!(app.permissions, Permission::ALL);
        }
    }
}
