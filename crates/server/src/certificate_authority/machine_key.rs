//! A machine's public key: the one thing that is taken from certificate requests and certificates.

use domain::machine::MachineId;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::Digest as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// `SubjectPublicKeyInfo` of every uncompressed P-256 key (RFC 5480), up to the 64 bytes of its point.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_BYTES: usize = P256_PREFIX.len() + 64;

/// A P-256 key in its one canonical encoding, so that one key has one machine id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineKey(Vec<u8>);

/// Why a certificate request or a certificate has no usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MachineKeyError {
    /// Not the document that it should be.
    #[error("not a {0}")]
    Malformed(&'static str),
    /// A key of another kind.
    #[error("the key is not an uncompressed P-256 key")]
    OtherKey,
    /// Whoever made the request does not hold the key.
    #[error("the certificate request is not signed by its own key with ECDSA and SHA-256")]
    NotSigned,
}

impl MachineKey {
    /// The key of a PKCS #10 request (PEM) that is signed by it. Names and extensions asked for are ignored.
    ///
    /// # Errors
    /// [`MachineKeyError`].
    pub(crate) fn from_request(pem: &str) -> Result<Self, MachineKeyError> {
        const MALFORMED: MachineKeyError =
            MachineKeyError::Malformed("PKCS #10 certificate request in PEM form");
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).or(Err(MALFORMED))?;
        let (rest, request) = X509CertificationRequest::from_der(&der).or(Err(MALFORMED))?;
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        let key = Self::from_der(request.certification_request_info.subject_pki.raw)?;
        let algorithm = &request.signature_algorithm.algorithm;
        if *algorithm != x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256 {
            return Err(MachineKeyError::NotSigned);
        }
        request.verify_signature().or(Err(MachineKeyError::NotSigned))?;
        Ok(key)
    }

    /// The key of a certificate. Whether the certificate is to be believed is TLS's to say.
    ///
    /// # Errors
    /// [`MachineKeyError`].
    pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, MachineKeyError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .or(Err(MachineKeyError::Malformed("X.509 certificate")))?;
        Self::from_der(parsed.public_key().raw)
    }

    fn from_der(der: &[u8]) -> Result<Self, MachineKeyError> {
        if der.len() == P256_BYTES && der.starts_with(&P256_PREFIX) {
            Ok(Self(der.to_vec()))
        } else {
            Err(MachineKeyError::OtherKey)
        }
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub(crate) fn as_der(&self) -> &[u8] {
        &self.0
    }

    /// The machine's id: the first 20 bytes of the key's SHA-256.
    pub(crate) fn id(&self) -> MachineId {
        let digest: [u8; 32] = sha2::Sha256::digest(&self.0).into();
        let mut id = [0; 20];
        id.copy_from_slice(digest.first_chunk::<20>().unwrap_or(&[0; 20]));
        MachineId(id)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _,
    };

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    fn pem(der: &[u8]) -> String {
        let label = "CERTIFICATE REQUEST";
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    #[test]
    fn the_id_comes_from_the_key_alone() {
        let key = KeyPair::generate().unwrap();
        let plain = MachineKey::from_request(&pem(&request(&key))).unwrap();
        let mut greedy = CertificateParams::new(["localhost".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let greedy =
            MachineKey::from_request(&greedy.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        assert_eq!(plain, greedy);
        let digest: [u8; 32] = sha2::Sha256::digest(key.subject_public_key_info()).into();
        assert_eq!(plain.id().0, digest[..20]);
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(MachineKey::from_request(&pem(&request(&key))), Err(MachineKeyError::OtherKey));
        }
    }

    #[test]
    fn a_request_for_another_ones_key_is_refused() {
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut forged = request(&own);
        let point = own.subject_public_key_info()[P256_PREFIX.len()..].to_vec();
        let start = forged.windows(point.len()).position(|window| window == point).unwrap();
        forged[start..start + point.len()]
            .copy_from_slice(&other.subject_public_key_info()[P256_PREFIX.len()..]);
        assert_eq!(MachineKey::from_request(&pem(&forged)), Err(MachineKeyError::NotSigned));
    }

    #[test]
    fn no_flipped_bit_yields_another_machine() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = request(&key);
        let own = MachineKey::from_request(&pem(&der)).unwrap();
        for bit in 0..der.len() * 8 {
            let mut flipped = der.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(accepted) = MachineKey::from_request(&pem(&flipped)) {
                assert_eq!(accepted, own, "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let der = request(&key);
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        let with_tail = [der.as_slice(), &[0]].concat();
        for text in ["", "x", &certificate, &pem(&[]), &pem(&der[..der.len() - 1]), &pem(&with_tail)] {
            assert!(matches!(MachineKey::from_request(text), Err(MachineKeyError::Malformed(_))), "{text}");
        }
    }
}
