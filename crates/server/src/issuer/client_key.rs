//! The keys with which apps sign their assertions, as administrators hand them in: a certificate or a public key.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use control_plane::KeyDraft;
use domain::time::Timestamp;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The longest PEM text, in bytes.
const PEM_BYTES_MAX: usize = 16 * 1024;
/// The shortest RSA modulus, in bits.
const RSA_BITS_MIN: usize = 2048;
/// The longest: verifying takes time that grows with it.
const RSA_BITS_MAX: usize = 8192;

/// Reads a certificate or a public key, PEM. A chain's first certificate counts.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn read_key(pem: &str, comment: String) -> Result<KeyDraft, String> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(format!("pem is longer than {PEM_BYTES_MAX} bytes"));
    }
    let block = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok);
    let block = block.ok_or("pem holds no PEM block")?;
    match block.label.as_str() {
        "CERTIFICATE" => {
            let (rest, certificate) = X509Certificate::from_der(&block.contents)
                .map_err(|error| format!("pem holds no certificate: {error}"))?;
            if !rest.is_empty() {
                return Err("the certificate has bytes behind its end".to_owned());
            }
            let key = draft(certificate.public_key(), comment)?;
            Ok(KeyDraft {
                x5t: Some(URL_SAFE_NO_PAD.encode(Sha1::digest(&block.contents))),
                x5t_s256: Some(URL_SAFE_NO_PAD.encode(Sha256::digest(&block.contents))),
                expires_at: Some(Timestamp::from_unix_seconds(certificate.validity().not_after.timestamp())),
                ..key
            })
        }
        "PUBLIC KEY" => {
            let (rest, key) = SubjectPublicKeyInfo::from_der(&block.contents)
                .map_err(|error| format!("pem holds no public key: {error}"))?;
            if !rest.is_empty() {
                return Err("the public key has bytes behind its end".to_owned());
            }
            draft(&key, comment)
        }
        label if label.contains("PRIVATE KEY") => {
            Err("this is a private key, which nobody else is to see: hand in its public key".to_owned())
        }
        label => Err(format!(
            "pem holds {:?}, not a CERTIFICATE or PUBLIC KEY",
            label.chars().take(40).collect::<String>()
        )),
    }
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    Rsa,
    P256,
    P384,
}

/// The kind of a public key, PEM.
pub(super) fn key_kind(pem: &str) -> Option<KeyKind> {
    let block = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok)?;
    let (_, key) = SubjectPublicKeyInfo::from_der(&block.contents).ok()?;
    kind_of(&key)
}

fn kind_of(key: &SubjectPublicKeyInfo<'_>) -> Option<KeyKind> {
    match key.parsed() {
        Ok(PublicKey::RSA(_)) => Some(KeyKind::Rsa),
        Ok(PublicKey::EC(_)) => {
            // Other curves have as many bits.
            match key.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string().as_str() {
                "1.2.840.10045.3.1.7" => Some(KeyKind::P256),
                "1.3.132.0.34" => Some(KeyKind::P384),
                _ => None,
            }
        }
        _ => None,
    }
}

fn draft(key: &SubjectPublicKeyInfo<'_>, comment: String) -> Result<KeyDraft, String> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&rsa.key_size()) => {
            return Err(format!(
                "the RSA key has {} bits, {RSA_BITS_MIN} to {RSA_BITS_MAX} are possible",
                rsa.key_size()
            ));
        }
        _ if kind_of(key).is_some() => {}
        _ => return Err("the key is not RSA, P-256 or P-384".to_owned()),
    }
    let encoded = STANDARD.encode(key.raw);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
    Ok(KeyDraft {
        thumbprint: hex::encode(Sha256::digest(key.raw)),
        x5t: None,
        x5t_s256: None,
        public_key: format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n")),
        comment,
        expires_at: None,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _};

    use super::*;

    #[test]
    fn certificates_and_public_keys_are_read() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let public = read_key(&key.public_key_pem(), "a".to_owned()).unwrap();
            assert_eq!(public.thumbprint, hex::encode(Sha256::digest(key.subject_public_key_info())));
            assert_eq!(public.public_key, key.public_key_pem().replace("\r\n", "\n"));
            let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            let read = read_key(&certificate.pem(), "b".to_owned()).unwrap();
            assert_eq!((&read.thumbprint, &read.public_key), (&public.thumbprint, &public.public_key));
            let sha1 = URL_SAFE_NO_PAD.encode(Sha1::digest(certificate.der()));
            assert_eq!(read.x5t, Some(sha1));
            assert!(read.x5t_s256.is_some() && read.expires_at.is_some());
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let long = "x".repeat(PEM_BYTES_MAX + 1);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for pem in ["", "x", &long, garbage, &key.public_key_pem()] {
            assert!(read_key(pem, String::new()).is_err(), "{pem}");
        }
        let private = read_key(&key.serialize_pem(), String::new()).unwrap_err();
        assert!(private.contains("private"), "{private}");
    }
}
