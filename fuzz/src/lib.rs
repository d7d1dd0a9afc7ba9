//! What is fuzzed: each function takes any bytes, and fails when a promise about hostile input is broken. That nothing
//! panics is the first of them.
//!
//! The fuzzer's targets and the replay of the committed seeds run the same functions. Deliberately keeps no state, so
//! that an input that fails once fails always.
#![forbid(unsafe_code)]

/// The server is too much to build for this one file of it.
#[path = "../../crates/server/src/token/text.rs"]
mod token_text;
/// So is the gate, with all that it needs of the kernel.
#[path = "../../crates/gate/src/unit_file.rs"]
mod unit_file;

/// What the kernel's programs tell is read by one file of the gate's backend, which brings them along.
#[path = "../../crates/enforcement/src/kernel/abi.rs"]
#[expect(dead_code, reason = "what is only written is not fuzzed")]
mod kernel_abi;

use std::io::ErrorKind;
use std::sync::LazyLock;

use agent_protocol::{
    EnrollReply, EnrollRequest, FROM_AGENT_BYTES_MAX, FROM_SERVER_BYTES_MAX, FromAgent, FromServer, Limited,
    RenewReply, RenewRequest,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::allow_policy::{AllowPolicy, Profile};
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::policy_settings::PolicySettings;
use domain::restriction::Desired;
use domain::time::Timestamp;
use ed25519_dalek::Signer as _;
use odata::{Property, Schema, Type};
use orders::{
    BREAK_GLASS_CODES, BREAK_GLASS_USES_MAX, BreakGlassCode, BreakGlassLog, BreakGlassStatement, Order,
    Receipt, SigningKey, TrustedKeys, VerifiedBreakGlass, VerifiedBreakGlassLog, VerifiedManifest, VerifiedOrder,
    VerifiedPolicy, VerifiedReceipt,
};
use policy::baseline::{Baseline, PLACES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use unit_file::UnitFile;

/// A function for each target, by the target's name.
pub const TARGETS: [(&str, fn(&[u8])); 11] = [
    ("odata", odata),
    ("orders", orders),
    ("break_glass", break_glass),
    ("agent_protocol", agent_protocol),
    ("gate_protocol", gate_protocol),
    ("dpkg", dpkg),
    ("rpm", rpm),
    ("baseline", baseline),
    ("token", token),
    ("kernel_event", kernel_event),
    ("unit_file", unit_file),
];

static SCHEMA: Schema = Schema {
    fields: &["id", "name", "size", "status", "lastSeen", "restriction", "tags"],
    properties: &[
        Property { name: "id", kind: Type::Guid },
        Property { name: "name", kind: Type::String },
        Property { name: "size", kind: Type::Integer },
        Property { name: "status", kind: Type::Enum(&["Pending", "InProgress"]) },
        Property { name: "lastSeen", kind: Type::DateTime },
        Property { name: "restriction/drift", kind: Type::Boolean },
        Property { name: "tags", kind: Type::Strings },
    ],
};

/// Query options, as a whole and as a `$filter`: what is read is printed and read again as the same.
pub fn odata(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for raw in [text.to_owned(), format!("$filter={text}"), format!("$filter={encoded}")] {
        match odata::parse(&raw, &SCHEMA) {
            Ok(query) => assert_eq!(odata::parse(&query.to_string(), &SCHEMA), Ok(query)),
            Err(error) => assert!(error.position >= 1 && error.found.len() < 1000),
        }
    }
}

const SEED: [u8; 32] = [7; 32];
const MACHINE: MachineId = MachineId([3; 20]);

/// Orders, policies and receipts: as they arrive, and as documents that a trusted key has signed, which is how a fuzzer
/// gets behind the signature. What is believed is for this machine, and signed anew it is believed again.
pub fn orders(data: &[u8]) {
    let key = SigningKey::from_seed(&SEED);
    let keys = TrustedKeys::new([key.public_key()]);
    let signed = |kind: &str| signed(&format!("application/vnd.cordon.{kind}.v1+json"), data);
    let now = Timestamp::from_unix_seconds(150);
    for bytes in [data.to_vec(), signed("order")] {
        let kept = VerifiedOrder::verify_kept(&bytes, &keys, MACHINE);
        if let Ok(verified) = VerifiedOrder::verify(&bytes, &keys, MACHINE, now) {
            let order = verified.order();
            assert!(order.machine == MACHINE && now <= order.not_after);
            let is_restricted = order.desired == Desired::Restricted;
            assert!(order.ends_at.is_none_or(|ends_at| is_restricted && ends_at > order.issued_at));
            assert_eq!(kept.as_ref(), Ok(&verified));
            let again = order.sign(&key).to_bytes();
            assert_eq!(VerifiedOrder::verify(&again, &keys, MACHINE, now).as_ref(), Ok(&verified));
            let other = TrustedKeys::new([SigningKey::from_seed(&[8; 32]).public_key()]);
            assert!(VerifiedOrder::verify(&bytes, &other, MACHINE, now).is_err());
        }
        assert!(bytes.len() <= Order::BYTES_MAX || kept.is_err());
    }
    for bytes in [data.to_vec(), signed("policy")] {
        if let Ok(verified) = VerifiedPolicy::verify(&bytes, &keys) {
            let again = orders::sign_policy(verified.policy(), &key).to_bytes();
            assert_eq!(
                VerifiedPolicy::verify(&again, &keys).map(|v| v.policy().clone()),
                Ok(verified.policy().clone())
            );
        }
    }
    for bytes in [data.to_vec(), signed("manifest")] {
        if let Ok(verified) = VerifiedManifest::verify_kept(&bytes, &keys) {
            let again = verified.manifest().sign(&key).unwrap().to_bytes();
            let manifest = verified.manifest().clone();
            assert_eq!(
                VerifiedManifest::verify_kept(&again, &keys).map(|v| v.manifest().clone()),
                Ok(manifest)
            );
            let at = |time| VerifiedManifest::verify(&bytes, &keys, time).is_ok();
            let (first, end) = (verified.manifest().issued_at, verified.manifest().expires_at);
            assert!(at(first) && !at(end));
        }
    }
    for bytes in [data.to_vec(), signed("receipt")] {
        if let Ok(verified) = VerifiedReceipt::verify(&bytes, key.public_key(), MACHINE) {
            let again = verified.receipt().sign(&key).to_bytes();
            assert_eq!(VerifiedReceipt::verify(&again, key.public_key(), MACHINE).as_ref(), Ok(&verified));
        }
        assert!(
            bytes.len() <= Receipt::BYTES_MAX
                || VerifiedReceipt::verify(&bytes, key.public_key(), MACHINE).is_err()
        );
    }
}

/// Break-glass statements, logs and codes: as they arrive, and as documents that a trusted key has signed. What is
/// believed is for this machine, within its limits, and signed anew it is believed again; no code is known to a statement
/// that does not hold its verifier.
pub fn break_glass(data: &[u8]) {
    let key = SigningKey::from_seed(&SEED);
    let keys = TrustedKeys::new([key.public_key()]);
    let typed = std::str::from_utf8(data).ok().and_then(|text| text.parse::<BreakGlassCode>().ok());
    if let Some(code) = &typed {
        assert_eq!(code.to_string().parse().as_ref(), Ok(code));
    }
    for bytes in [data.to_vec(), signed("application/vnd.cordon.break-glass.v1+json", data)] {
        let verified = VerifiedBreakGlass::verify(&bytes, &keys, MACHINE);
        assert!(bytes.len() <= BreakGlassStatement::BYTES_MAX || verified.is_err());
        let Ok(verified) = verified else { continue };
        let statement = verified.statement();
        assert!(statement.machine == MACHINE && statement.first.serial > 0);
        assert!((1..=BREAK_GLASS_CODES).contains(&statement.verifiers.len()));
        assert!(i64::try_from(statement.last().serial).is_ok());
        let again = statement.sign(&key).to_bytes();
        assert_eq!(VerifiedBreakGlass::verify(&again, &keys, MACHINE).as_ref(), Ok(&verified));
        let own = BreakGlassCode::derive(&key, MACHINE, statement.first);
        for code in typed.iter().chain([&own]) {
            let is_held = statement.verifiers.contains(&code.verifier(MACHINE));
            assert_eq!(verified.number_of(code).is_some(), is_held);
        }
    }
    for bytes in [data.to_vec(), signed("application/vnd.cordon.break-glass-log.v1+json", data)] {
        let verified = VerifiedBreakGlassLog::verify(&bytes, key.public_key(), MACHINE);
        assert!(bytes.len() <= BreakGlassLog::BYTES_MAX || verified.is_err());
        let Ok(verified) = verified else { continue };
        assert!(verified.log().uses.len() <= BREAK_GLASS_USES_MAX);
        let again = verified.log().sign(&key).to_bytes();
        assert_eq!(VerifiedBreakGlassLog::verify(&again, key.public_key(), MACHINE).as_ref(), Ok(&verified));
    }
}

/// An envelope (DSSE) with one signature by the trusted key.
fn signed(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    let signature = ed25519_dalek::SigningKey::from_bytes(&SEED).sign(&[head.as_bytes(), payload].concat());
    let envelope = serde_json::json!({
        "payloadType": payload_type,
        "payload": STANDARD.encode(payload),
        "signatures": [{"keyid": *KEY_ID, "sig": STANDARD.encode(signature.to_bytes())}],
    });
    envelope.to_string().into_bytes()
}

/// What the real signer names the trusted key by.
static KEY_ID: LazyLock<serde_json::Value> = LazyLock::new(|| {
    let policy = AllowPolicy {
        name: "any".to_owned(),
        revision: 1,
        profile: Profile::OsOnly,
        settings: PolicySettings::default(),
        rules: Vec::new(),
    };
    let bytes = orders::sign_policy(&policy, &SigningKey::from_seed(&SEED)).to_bytes();
    serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["signatures"][0]["keyid"].clone()
});

/// Frames between agent and server: what is accepted is within its limits, and is the same after another trip.
pub fn agent_protocol(data: &[u8]) {
    trip::<FromAgent>(data, FROM_AGENT_BYTES_MAX);
    trip::<FromServer>(data, FROM_SERVER_BYTES_MAX);
    trip::<EnrollRequest>(data, FROM_AGENT_BYTES_MAX);
    trip::<EnrollReply>(data, FROM_AGENT_BYTES_MAX);
    trip::<RenewRequest>(data, FROM_AGENT_BYTES_MAX);
    trip::<RenewReply>(data, FROM_AGENT_BYTES_MAX);
}

fn trip<T: DeserializeOwned + Serialize + Limited + PartialEq + std::fmt::Debug>(data: &[u8], limit: usize) {
    if let Ok(frame) = agent_protocol::decode::<T>(data, limit) {
        assert_eq!(frame.check(), Ok(()));
        // Escapes can make it longer than what arrived.
        let again = agent_protocol::encode(&frame);
        assert_eq!(agent_protocol::decode::<T>(again.as_bytes(), again.len()), Ok(frame));
    }
}

/// Frames between agent and gate, as a stream: it ends, in an error or at its end, and each frame survives another trip.
pub fn gate_protocol(data: &[u8]) {
    stream::<gate_protocol::Request>(data);
    stream::<gate_protocol::Reply>(data);
}

fn stream<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let mut reader = data;
    loop {
        match gate_protocol::read_frame::<T>(&mut reader) {
            Ok(Some(frame)) => {
                let again = gate_protocol::encode(&frame).unwrap();
                assert_eq!(gate_protocol::read_frame::<T>(&mut again.as_slice()).unwrap(), Some(frame));
            }
            // A prefix that is cut off is the end too.
            Ok(None) => return,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{error}");
                return;
            }
        }
    }
}

/// The files of the dpkg database: names and paths that come out lead nowhere else.
pub fn dpkg(data: &[u8]) {
    let status = trust::dpkg::read_status(data).unwrap();
    assert!(status.packages.is_sorted_by(|a, b| a.key < b.key), "sorted, no two alike");
    for package in &status.packages {
        assert!(!package.name.is_empty() && !package.key.contains('/') && !package.key.starts_with('.'));
        package.conffiles.iter().for_each(|(path, _)| assert_clean(path));
    }
    trust::dpkg::read_md5sums(data, &mut |path, _| assert_clean(path)).unwrap();
    trust::dpkg::read_diversions(data).unwrap();
}

fn assert_clean(path: &[u8]) {
    let parts = path.strip_prefix(b"/").expect("an absolute path").split(|byte| *byte == b'/');
    assert!(!path.contains(&0) && path.len() <= 4096);
    parts.for_each(|part| assert!(!matches!(part, b"" | b"." | b".."), "{path:?}"));
}

/// rpm's databases and what is in them. A database and its log are one input, with the length of the database (`u32`,
/// little endian) before both, when the input begins with an 'L'.
pub fn rpm(data: &[u8]) {
    list_headers(data);
}

/// How many files the headers in these bytes list, whichever of rpm's formats they have.
pub fn list_headers(data: &[u8]) -> usize {
    let mut listed = 0;
    let mut read = |blob: &[u8]| {
        let Ok(header) = trust::rpm::Header::read(blob) else { return };
        if let Ok(package) = header.package() {
            assert!(package.bytes().all(|byte| byte.is_ascii_graphic()) && !package.contains('/'));
        }
        let _ = header.list_files(&mut |path, _| {
            assert_clean(path);
            listed += 1;
        });
    };
    read(data);
    let (database, log) = match data.split_first_chunk::<5>() {
        Some(([b'L', length @ ..], rest)) => {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap().min(rest.len());
            let (database, log) = rest.split_at(length);
            (database, Some(log))
        }
        Some(_) | None => (data, None),
    };
    let blobs: [Option<Box<dyn trust::rpm::Blobs + '_>>; 2] = [
        trust::rpm::Sqlite::open(database, log).ok().map(|read| Box::new(read) as Box<_>),
        trust::rpm::Ndb::open(data).ok().map(|read| Box::new(read) as Box<_>),
    ];
    for blobs in blobs.into_iter().flatten() {
        (0..blobs.count()).filter_map(|number| blobs.blob(number).ok()).for_each(|blob| read(&blob));
    }
    listed
}

/// A package baseline, and look-ups in one that was never verified. What passes for sound answers for each of its
/// records.
pub fn baseline(data: &[u8]) {
    let Ok(baseline) = Baseline::open(data) else { return };
    let sound = baseline.verify().is_ok();
    let digests =
        data.get(24..).unwrap_or_default().chunks(40).filter_map(|record| record.first_chunk::<32>());
    for (index, digest) in digests.take(64).enumerate() {
        let places = baseline.places(&Sha256Digest(*digest));
        if sound && (index as u64) < baseline.files() {
            let places = places.unwrap();
            assert!((1..=PLACES_MAX).contains(&places.len()));
            assert!(places.is_sorted_by(|a, b| a < b) && places.iter().all(|path| path.starts_with(b"/")));
        }
    }
}

/// Bearer tokens: as they arrive, and with the two first lines as header and claims, which is how a fuzzer gets behind
/// base64. What is read is what another reader reads too, down to the last member.
pub fn token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        read_token(text);
    }
    let (text, header, claims) = token_of_lines(data);
    let Some(read) = read_token(&text) else { return };
    let header: serde_json::Map<_, _> = serde_json::from_slice(header).unwrap();
    let claims: serde_json::Map<_, _> = serde_json::from_slice(claims).unwrap();
    assert_eq!(header["alg"], read.algorithm);
    assert_eq!(header.get("kid").and_then(serde_json::Value::as_str), read.key_id.as_deref());
    assert!(!header.contains_key("crit"));
    assert_eq!(read.claims, claims);
}

/// Whether the two first lines of these bytes are the header and the claims of a token.
pub fn is_token(data: &[u8]) -> bool {
    read_token(&token_of_lines(data).0).is_some()
}

fn token_of_lines(data: &[u8]) -> (String, &[u8], &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let (header, claims) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    (format!("{}.{}.AAAA", encode(header), encode(claims)), header, claims)
}

fn read_token(text: &str) -> Option<token_text::TokenText<'_>> {
    match token_text::read_token(text) {
        Ok(token) => {
            assert!(text.len() <= token_text::TOKEN_BYTES_MAX);
            assert_eq!(format!("{}.{}", token.signed, token.signature), text);
            Some(token)
        }
        Err(token_text::Unreadable(why)) => {
            assert!(!why.is_empty());
            None
        }
    }
}

/// Events, labels and settings as they lie in the kernel's maps, which others may have written: paths are bounded and
/// absolute or marked as cut, what is not known restricts, and a label reads as what is written of it.
pub fn kernel_event(data: &[u8]) {
    use kernel_abi::{Control, Event, Label, Mode, Sight, State};
    if let Some(event) = Event::from_bytes(data) {
        for path in [&event.path, &event.program] {
            assert!(path.is_empty() || path.starts_with(b"/") || path.starts_with(b".../"));
            assert!(path.len() <= 1300 && !path.contains(&0));
        }
    }
    if let Some(label) = Label::from_bytes(data) {
        assert_eq!(Label::from_bytes(&label.to_bytes()), Some(label));
        assert!(label.settled || !(label.counts(1) || label.counts(2)));
    }
    let control = Control::from_bytes(data);
    assert_eq!(Control::from_bytes(&control.to_bytes()), control);
    let mode = Mode::from_bytes(data);
    assert!(mode.state == State::Restricting || data.iter().take(4).all(|byte| *byte <= 1));
    let _ = Sight::from_bytes(data);
}

/// Whether these bytes are an event with a path.
pub fn is_kernel_event(data: &[u8]) -> bool {
    kernel_abi::Event::from_bytes(data).is_some_and(|event| !event.path.is_empty())
}

/// A unit of systemd, and one with a drop-in: what it starts leads nowhere else, and there is not too much of it.
pub fn unit_file(data: &[u8]) {
    let (unit, drop_in) = data.split_at(data.len() / 2);
    for texts in [vec![data], vec![unit, drop_in]] {
        let unit = UnitFile::read(texts);
        assert!(unit.programs.len() <= 3 * 64);
        for path in &unit.programs {
            let parts: Vec<_> = path.split(|byte| *byte == b'/').collect();
            assert!(path.starts_with(b"/") || parts.len() == 1);
            assert!((1..=4096).contains(&path.len()) && !path.contains(&0) && !parts.contains(&&b".."[..]));
        }
        assert!(unit.service.is_none_or(|name| unit_file::is_name(&name)));
    }
}

/// Whether a unit starts something.
pub fn starts_something(data: &[u8]) -> bool {
    !UnitFile::read([data]).programs.is_empty()
}
