//! Who this machine is: its key, its certificate, and what the server said when it enrolled.

use agent_core::{Identity, Validity};
use anyhow::{Context as _, Result, bail, ensure};
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::time::Timestamp;
use orders::{PublicKey, TrustedKeys};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::state_dir::StateDir;

const KEY: &str = "machine.key";
const CERTIFICATE: &str = "certificate.pem";
const AUTHORITY: &str = "authority.pem";
const ENROLLMENT: &str = "enrollment.json";

/// The machine's P-256 key.
pub(crate) struct MachineKey(KeyPair);

/// What the server said when the machine enrolled. Written last, so that with it everything is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enrollment {
    pub(crate) machine: String,
    pub(crate) incarnation: u64,
    /// Where it enrolled.
    pub(crate) server: String,
    /// Where it connects to.
    pub(crate) agent_url: String,
    pub(crate) order_keys: Vec<String>,
}

/// A machine that is enrolled.
pub(crate) struct Credential {
    pub(crate) id: MachineId,
    pub(crate) enrollment: Enrollment,
    pub(crate) key: MachineKey,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) authority: CertificateDer<'static>,
    pub(crate) validity: Validity,
}

impl MachineKey {
    /// The key in the folder; none before the first enrollment.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>> {
        let Some(pem) = state.read(KEY)? else { return Ok(None) };
        let key =
            KeyPair::from_pem(&pem).with_context(|| format!("{} is damaged", state.path(KEY).display()))?;
        Ok(Some(Self(key)))
    }

    /// The key in the folder, made when there is none.
    ///
    /// # Errors
    /// When it cannot be read, made or written.
    pub(crate) fn load_or_make(state: &StateDir) -> Result<Self> {
        if let Some(key) = Self::load(state)? {
            return Ok(key);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make the machine's key")?;
        state.write(KEY, &key.serialize_pem())?;
        Ok(Self(key))
    }

    /// The machine's id.
    pub(crate) fn machine(&self) -> MachineId {
        machine_of(&self.0.subject_public_key_info())
    }

    /// Asks for a certificate: PKCS #10, PEM.
    ///
    /// # Errors
    /// When the key does not sign.
    pub(crate) fn certificate_request(&self) -> Result<String> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, self.machine().to_string());
        let request = parameters.serialize_request(&self.0).and_then(|request| request.pem());
        request.context("cannot sign a certificate request")
    }

    /// For TLS.
    pub(crate) fn private(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.0.serialize_der())
            .map_err(|error| anyhow::anyhow!("the machine's key: {error}"))
    }
}

impl Credential {
    /// The credential in the folder; none before enrollment.
    ///
    /// # Errors
    /// When a part is missing or damaged.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>> {
        let Some(enrollment) = state.read(ENROLLMENT)? else { return Ok(None) };
        let load = || -> Result<Self> {
            let enrollment: Enrollment = serde_json::from_str(&enrollment).context(ENROLLMENT)?;
            let key = MachineKey::load(state)?.context("the machine's key is gone")?;
            let text = |name: &str| state.read(name)?.with_context(|| format!("{name} is gone"));
            let certificate = text(CERTIFICATE)?;
            Self::assemble(enrollment, key, &certificate, &text(AUTHORITY)?)
        };
        let credential = load().with_context(|| {
            format!(
                "the enrollment in {} cannot be used: enroll this machine again",
                state.path("").display()
            )
        });
        credential.map(Some)
    }

    /// Puts the parts together, and checks that they belong together.
    ///
    /// # Errors
    /// Which part does not.
    pub(crate) fn assemble(
        enrollment: Enrollment,
        key: MachineKey,
        certificate: &str,
        authority: &str,
    ) -> Result<Self> {
        let id = key.machine();
        ensure!(enrollment.machine == id.to_string(), "the enrollment is for machine {}", enrollment.machine);
        identity(id, &enrollment)?;
        let certificate = certificate_of(certificate).context(CERTIFICATE)?;
        let validity = validity_for(&certificate, id).context(CERTIFICATE)?;
        let authority = certificate_of(authority).context(AUTHORITY)?;
        Ok(Self { id, enrollment, key, certificate, authority, validity })
    }

    /// Whose orders count for this machine.
    pub(crate) fn identity(&self) -> Result<Identity> {
        identity(self.id, &self.enrollment)
    }

    /// Writes a whole enrollment.
    ///
    /// # Errors
    /// When a part cannot be written; what was there before then counts.
    pub(crate) fn save(
        state: &StateDir,
        enrollment: &Enrollment,
        certificate: &str,
        authority: &str,
    ) -> Result<()> {
        state.write(AUTHORITY, authority)?;
        state.write(CERTIFICATE, certificate)?;
        state.write(ENROLLMENT, &serde_json::to_string_pretty(enrollment)?)
    }

    /// Takes a fresh certificate for the same key into use.
    ///
    /// # Errors
    /// When it is not one, or cannot be written.
    pub(crate) fn renew(&mut self, state: &StateDir, pem: &str) -> Result<()> {
        let certificate = certificate_of(pem)?;
        let validity = validity_for(&certificate, self.id)?;
        state.write(CERTIFICATE, pem)?;
        self.certificate = certificate;
        self.validity = validity;
        Ok(())
    }
}

fn identity(machine: MachineId, enrollment: &Enrollment) -> Result<Identity> {
    let keys: Result<Vec<PublicKey>, _> = enrollment.order_keys.iter().map(|key| key.parse()).collect();
    let keys = keys.context("the server's order keys")?;
    ensure!(!keys.is_empty(), "there are no order keys");
    Ok(Identity { machine, keys: TrustedKeys::new(keys) })
}

fn certificate_of(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow::anyhow!("not a certificate in PEM: {error}"))
}

/// SHA-256 of a certificate: what a pin is compared with.
pub(crate) fn digest_of(certificate: &CertificateDer<'_>) -> Sha256Digest {
    Sha256Digest(Sha256::digest(certificate).into())
}

/// SHA-256 of a certificate in PEM.
///
/// # Errors
/// When it is not one.
pub(crate) fn pin_of(pem: &str) -> Result<Sha256Digest> {
    Ok(digest_of(&certificate_of(pem)?))
}

/// From when to when a certificate of this machine's key counts.
fn validity_for(certificate: &CertificateDer<'_>, machine: MachineId) -> Result<Validity> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).context("not a certificate that can be read")?;
    if machine_of(parsed.public_key().raw) != machine {
        bail!("the certificate is for another key than this machine's");
    }
    let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_unix_seconds(time.timestamp());
    Ok(Validity {
        not_before: at(&parsed.validity().not_before),
        not_after: at(&parsed.validity().not_after),
    })
}

fn machine_of(public_key_info: &[u8]) -> MachineId {
    let digest: [u8; 32] = Sha256::digest(public_key_info).into();
    let mut id = [0; 20];
    id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    MachineId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_and_the_parts_must_belong_together() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        assert!(Credential::load(&state).unwrap().is_none());
        let key = MachineKey::load_or_make(&state).unwrap();
        assert_eq!(MachineKey::load_or_make(&state).unwrap().machine(), key.machine());
        assert!(key.certificate_request().unwrap().contains("BEGIN CERTIFICATE REQUEST"));

        let certificate = CertificateParams::default().self_signed(&key.0).unwrap().pem();
        let enrollment = Enrollment {
            machine: key.machine().to_string(),
            incarnation: 1,
            server: "https://s".to_owned(),
            agent_url: "https://s".to_owned(),
            order_keys: vec![orders::SigningKey::from_seed(&[1; 32]).public_key().to_string()],
        };
        Credential::save(&state, &enrollment, &certificate, &certificate).unwrap();
        let mut credential = Credential::load(&state).unwrap().unwrap();
        assert_eq!((credential.id, &credential.enrollment), (key.machine(), &enrollment));

        let other = KeyPair::generate().unwrap();
        let foreign = CertificateParams::default().self_signed(&other).unwrap().pem();
        assert!(credential.renew(&state, &foreign).is_err());
        assert!(credential.renew(&state, &certificate).is_ok());

        for (name, content) in
            [(CERTIFICATE, foreign.as_str()), (CERTIFICATE, ""), (ENROLLMENT, "{}"), (KEY, "x")]
        {
            Credential::save(&state, &enrollment, &certificate, &certificate).unwrap();
            state.write(KEY, &key.0.serialize_pem()).unwrap();
            assert!(Credential::load(&state).unwrap().is_some());
            state.write(name, content).unwrap();
            let error = Credential::load(&state).err().unwrap();
            assert!(format!("{error:#}").contains("enroll this machine again"), "{error:#}");
        }
    }
}
