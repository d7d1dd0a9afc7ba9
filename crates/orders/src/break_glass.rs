//! Break-glass: the codes that lift a restriction on the machine itself, without a network.
//!
//! A *statement* says by which codes a machine may be lifted: it holds a verifier of each, which tells a code from
//! another and does not tell the code. The machine keeps it ahead of time. A *log* is the machine's own, signed by its
//! gate: which codes were used, and when. Nobody stores a code: the control plane derives it anew when it is shown.

use std::fmt;
use std::str::FromStr;

use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use subtle::ConstantTimeEq as _;

use crate::envelope::{Envelope, VerifyError};
use crate::key::{PublicKey, SigningKey, TrustedKeys};
use crate::order::text_of;

const STATEMENT_TYPE: &str = "application/vnd.cordon.break-glass.v1+json";
const LOG_TYPE: &str = "application/vnd.cordon.break-glass-log.v1+json";

/// How many codes one statement knows: how often a code can be shown while the machine is away.
pub const BREAK_GLASS_CODES: usize = 8;
/// The most uses in one log; the oldest go first.
pub const BREAK_GLASS_USES_MAX: usize = 8;

/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Random signs of a code, 5 bits each: 130 bits.
const RANDOM_SIGNS: usize = 26;
/// Signs that tell a mistyped code: 10 bits.
const CHECK_SIGNS: usize = 2;
const SIGNS: usize = RANDOM_SIGNS + CHECK_SIGNS;
/// Signs between two dashes.
const GROUP: usize = 4;
/// More text than this is no code, however it is spaced.
const TEXT_BYTES_MAX: usize = 128;

/// Which code of which machine: no two are alike, over enrollments and restores of the control plane's store too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeNumber {
    /// The store's epoch when the statement was made.
    pub store_epoch: u64,
    /// The machine's enrollment.
    pub incarnation: u64,
    /// Counts from 1 within both.
    pub serial: u64,
}

/// A break-glass code. Secret until it was used; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct BreakGlassCode([u8; SIGNS]);

/// The text is not a code: something in it is mistyped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no break-glass code: it has {SIGNS} letters and digits, and something is mistyped")]
pub struct ParseCodeError;

/// By which codes a machine may be lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakGlassStatement {
    /// The machine.
    pub machine: MachineId,
    /// The first code; the others follow by serial.
    pub first: CodeNumber,
    /// A verifier of each code, 1 to [`BREAK_GLASS_CODES`].
    pub verifiers: Vec<Sha256Digest>,
    /// When it was signed.
    pub issued_at: Timestamp,
}

/// The statement inside an envelope that a trusted key signed for this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBreakGlass(BreakGlassStatement);

/// One code that was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakGlassUse {
    /// Which.
    pub code: CodeNumber,
    /// The generation of the order that was in force.
    pub generation: u64,
    /// When, by the machine's clock.
    pub at: Timestamp,
}

/// The codes that were used on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakGlassLog {
    /// The machine.
    pub machine: MachineId,
    /// Oldest first, at most [`BREAK_GLASS_USES_MAX`].
    pub uses: Vec<BreakGlassUse>,
}

/// A log that this machine's own gate signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBreakGlassLog(BreakGlassLog);

impl BreakGlassCode {
    /// The machine's code with this number. Whoever has the key that signs orders can derive every code, and nobody
    /// else can any.
    pub fn derive(key: &SigningKey, machine: MachineId, number: CodeNumber) -> Self {
        // Every part has a fixed length, so no two inputs are alike, and the result is cut, so it cannot be continued.
        let mut hash = sha2::Sha256::new_with_prefix(b"cordon break-glass code v1\0");
        hash.update(key.to_seed());
        hash.update(machine.0);
        for part in [number.store_epoch, number.incarnation, number.serial] {
            hash.update(part.to_be_bytes());
        }
        let mut signs = [0; SIGNS];
        for (sign, value) in signs.iter_mut().zip(fives(&hash.finalize())).take(RANDOM_SIGNS) {
            *sign = value;
        }
        Self::checked(signs)
    }

    /// With the check signs that belong to the others.
    fn checked(mut signs: [u8; SIGNS]) -> Self {
        let check = check_of(&signs);
        for (sign, value) in signs.iter_mut().skip(RANDOM_SIGNS).zip(check) {
            *sign = value;
        }
        Self(signs)
    }

    /// What tells this code from another on this machine, and does not tell the code.
    pub fn verifier(&self, machine: MachineId) -> Sha256Digest {
        let mut hash = sha2::Sha256::new_with_prefix(b"cordon break-glass verifier v1\0");
        hash.update(machine.0);
        hash.update(self.0);
        Sha256Digest(hash.finalize().into())
    }
}

/// The bits of these bytes by fives.
fn fives(bytes: &[u8]) -> impl Iterator<Item = u8> + use<> {
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let bits: Vec<u8> = bits.collect();
    bits.chunks_exact(5)
        .map(|five| five.iter().fold(0, |value, bit| value << 1 | bit))
        .collect::<Vec<_>>()
        .into_iter()
}

fn check_of(signs: &[u8; SIGNS]) -> impl Iterator<Item = u8> + use<> {
    let mut hash = sha2::Sha256::new_with_prefix(b"cordon break-glass check v1\0");
    hash.update(signs.first_chunk::<RANDOM_SIGNS>().map_or(&[][..], |random| random));
    fives(&hash.finalize()).take(CHECK_SIGNS)
}

impl fmt::Display for BreakGlassCode {
    /// Groups of four signs with dashes between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, sign) in self.0.iter().enumerate() {
            let dash = if index > 0 && index % GROUP == 0 { "-" } else { "" };
            let letter = ALPHABET.get(usize::from(*sign)).copied().map_or('?', char::from);
            write!(f, "{dash}{letter}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BreakGlassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BreakGlassCode(..)")
    }
}

impl FromStr for BreakGlassCode {
    type Err = ParseCodeError;

    /// Reads a code as people write it: either case, spaces and dashes anywhere, O for 0, I and L for 1.
    fn from_str(text: &str) -> Result<Self, ParseCodeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ParseCodeError);
        }
        let mut signs = [0; SIGNS];
        let mut places = signs.iter_mut();
        for letter in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-') {
            let letter = match letter.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            let value = (0_u8..).zip(ALPHABET).find(|(_, sign)| **sign == letter).ok_or(ParseCodeError)?.0;
            *places.next().ok_or(ParseCodeError)? = value;
        }
        if places.next().is_some() {
            return Err(ParseCodeError);
        }
        let checked = Self::checked(signs);
        if checked.0 == signs { Ok(checked) } else { Err(ParseCodeError) }
    }
}

impl BreakGlassStatement {
    /// The longest signed statement, in bytes.
    pub const BYTES_MAX: usize = 4 * 1024;

    /// The statement about the machine's codes from `first` on.
    pub fn new(key: &SigningKey, machine: MachineId, first: CodeNumber, issued_at: Timestamp) -> Self {
        let serials = (first.serial..).take(BREAK_GLASS_CODES);
        let verifiers = serials
            .map(|serial| {
                BreakGlassCode::derive(key, machine, CodeNumber { serial, ..first }).verifier(machine)
            })
            .collect();
        Self { machine, first, verifiers, issued_at }
    }

    /// Signs it.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        let document = StatementDocument {
            machine: self.machine.to_string(),
            store_epoch: self.first.store_epoch,
            incarnation: self.first.incarnation,
            first: self.first.serial,
            verifiers: self.verifiers.iter().map(ToString::to_string).collect(),
            issued_at: self.issued_at.ticks(),
        };
        Envelope::sign(STATEMENT_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key)
    }

    /// The number of the last code.
    pub fn last(&self) -> CodeNumber {
        let more = self.verifiers.len().saturating_sub(1) as u64;
        CodeNumber { serial: self.first.serial.saturating_add(more), ..self.first }
    }
}

impl VerifiedBreakGlass {
    /// Believes `bytes` when a trusted key signed them as the statement about `machine`.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(bytes: &[u8], keys: &TrustedKeys, machine: MachineId) -> Result<Self, VerifyError> {
        let statement = Envelope::from_bytes(bytes, BreakGlassStatement::BYTES_MAX)?.document(
            STATEMENT_TYPE,
            keys,
            StatementDocument::read,
        )?;
        if statement.machine != machine {
            return Err(VerifyError::OtherMachine(statement.machine));
        }
        Ok(Self(statement))
    }

    /// The statement.
    pub fn statement(&self) -> &BreakGlassStatement {
        &self.0
    }

    /// The number of a code that the statement knows. Takes as long for every code.
    pub fn number_of(&self, code: &BreakGlassCode) -> Option<CodeNumber> {
        let BreakGlassStatement { machine, first, verifiers, .. } = &self.0;
        let verifier = code.verifier(*machine);
        let mut found = None;
        for (serial, known) in (first.serial..).zip(verifiers) {
            if known.0.ct_eq(&verifier.0).into() {
                found = Some(CodeNumber { serial, ..*first });
            }
        }
        found
    }
}

impl BreakGlassLog {
    /// The longest signed log, in bytes.
    pub const BYTES_MAX: usize = 4 * 1024;

    /// Signs it with the gate's key.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        let uses = self.uses.iter().map(|used| UseDocument {
            store_epoch: used.code.store_epoch,
            incarnation: used.code.incarnation,
            serial: used.code.serial,
            generation: used.generation,
            at: used.at.ticks(),
        });
        let document = LogDocument { machine: self.machine.to_string(), uses: uses.collect() };
        Envelope::sign(LOG_TYPE, &serde_json::to_vec(&document).unwrap_or_default(), key)
    }
}

impl VerifiedBreakGlassLog {
    /// Believes `bytes` when `gate`, the key enrolled for `machine`, signed them as that machine's log.
    ///
    /// # Errors
    /// [`VerifyError`], which says what is wrong.
    pub fn verify(bytes: &[u8], gate: PublicKey, machine: MachineId) -> Result<Self, VerifyError> {
        let log = Envelope::from_bytes(bytes, BreakGlassLog::BYTES_MAX)?.document(
            LOG_TYPE,
            &TrustedKeys::new([gate]),
            LogDocument::read,
        )?;
        if log.machine != machine {
            return Err(VerifyError::OtherMachine(log.machine));
        }
        Ok(Self(log))
    }

    /// The log.
    pub fn log(&self) -> &BreakGlassLog {
        &self.0
    }
}

/// The signed bytes of a statement.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementDocument {
    machine: String,
    store_epoch: u64,
    incarnation: u64,
    first: u64,
    verifiers: Vec<String>,
    issued_at: i64,
}

impl StatementDocument {
    fn read(self) -> Result<BreakGlassStatement, String> {
        if !(1..=BREAK_GLASS_CODES).contains(&self.verifiers.len()) {
            return Err(format!("{} codes", self.verifiers.len()));
        }
        let first =
            CodeNumber { store_epoch: self.store_epoch, incarnation: self.incarnation, serial: self.first };
        Ok(BreakGlassStatement {
            machine: self.machine.parse().map_err(text_of)?,
            first: numbered(first, self.verifiers.len())?,
            verifiers: self
                .verifiers
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()
                .map_err(text_of)?,
            issued_at: Timestamp::from_ticks(self.issued_at),
        })
    }
}

/// The signed bytes of a log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogDocument {
    machine: String,
    uses: Vec<UseDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UseDocument {
    store_epoch: u64,
    incarnation: u64,
    serial: u64,
    generation: u64,
    at: i64,
}

impl LogDocument {
    fn read(self) -> Result<BreakGlassLog, String> {
        if self.uses.len() > BREAK_GLASS_USES_MAX {
            return Err(format!("{} uses", self.uses.len()));
        }
        let read = |used: UseDocument| {
            let UseDocument { store_epoch, incarnation, serial, generation, at } = used;
            let code = numbered(CodeNumber { store_epoch, incarnation, serial }, 1)?;
            let generation = countable(generation)?;
            Ok::<_, String>(BreakGlassUse { code, generation, at: Timestamp::from_ticks(at) })
        };
        Ok(BreakGlassLog {
            machine: self.machine.parse().map_err(text_of)?,
            uses: self.uses.into_iter().map(read).collect::<Result<_, _>>()?,
        })
    }
}

/// The number, when it and the codes behind it can be counted and stored.
fn numbered(first: CodeNumber, codes: usize) -> Result<CodeNumber, String> {
    if first.serial == 0 {
        return Err("codes are counted from 1".to_owned());
    }
    countable(first.store_epoch)?;
    countable(first.incarnation)?;
    countable(first.serial.saturating_add(codes as u64))?;
    Ok(first)
}

/// A number that databases can hold.
fn countable(number: u64) -> Result<u64, String> {
    i64::try_from(number).map(|_fits| number).map_err(|_too_large| format!("{number} is beyond counting"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MACHINE: MachineId = MachineId([3; 20]);
    const FIRST: CodeNumber = CodeNumber { store_epoch: 1, incarnation: 2, serial: 5 };

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn code(serial: u64) -> BreakGlassCode {
        BreakGlassCode::derive(&key(), MACHINE, CodeNumber { serial, ..FIRST })
    }

    fn verified(statement: &BreakGlassStatement) -> Result<VerifiedBreakGlass, VerifyError> {
        let keys = TrustedKeys::new([key().public_key()]);
        VerifiedBreakGlass::verify(&statement.sign(&key()).to_bytes(), &keys, MACHINE)
    }

    #[test]
    fn a_code_is_written_in_groups_and_read_as_people_type_it() {
        let text = code(5).to_string();
        assert_eq!(text.len(), SIGNS + SIGNS / GROUP - 1);
        assert!(text.split('-').all(|group| group.len() == GROUP), "{text}");
        for typed in [
            text.clone(),
            text.to_lowercase(),
            text.replace('-', ""),
            format!(" {}\n", text.replace('-', " ")),
            text.replace('0', "O").replace('1', "l"),
        ] {
            assert_eq!(typed.parse(), Ok(code(5)), "{typed}");
        }
        assert!(!format!("{:?}", code(5)).contains(&text));
    }

    #[test]
    fn no_two_codes_are_alike() {
        let numbers = [
            FIRST,
            CodeNumber { serial: 6, ..FIRST },
            CodeNumber { incarnation: 3, ..FIRST },
            CodeNumber { store_epoch: 2, ..FIRST },
        ];
        let mut codes: Vec<_> =
            numbers.map(|number| BreakGlassCode::derive(&key(), MACHINE, number).to_string()).to_vec();
        codes.push(BreakGlassCode::derive(&key(), MachineId([4; 20]), FIRST).to_string());
        codes.push(BreakGlassCode::derive(&SigningKey::from_seed(&[2; 32]), MACHINE, FIRST).to_string());
        let count = codes.len();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn what_is_mistyped_is_no_code() {
        let text = code(5).to_string().replace('-', "");
        for bad in [
            "",
            "-",
            "U",
            text.get(1..).unwrap(),
            &format!("{text}0"),
            &"0".repeat(SIGNS),
            &"0".repeat(10_000),
            "ü",
        ] {
            assert_eq!(bad.parse::<BreakGlassCode>(), Err(ParseCodeError), "{bad}");
        }
        // One wrong sign, or two neighbors swapped, is noticed but for one time in a thousand.
        let noticed = |text: String| text.parse::<BreakGlassCode>().is_err();
        let mut tried = 0;
        let mut missed = 0;
        for at in 0..SIGNS {
            for sign in ALPHABET {
                let mut typed = text.clone().into_bytes();
                if typed[at] != *sign {
                    typed[at] = *sign;
                    tried += 1;
                    missed += usize::from(!noticed(String::from_utf8(typed).unwrap()));
                }
            }
        }
        assert!(tried == SIGNS * 31 && missed <= 5, "{missed} of {tried} were not noticed");
    }

    #[test]
    fn a_statement_knows_its_codes_and_no_other() {
        let statement = BreakGlassStatement::new(&key(), MACHINE, FIRST, Timestamp::default());
        let read = verified(&statement).unwrap();
        assert_eq!((read.statement(), statement.last().serial), (&statement, 12));
        for serial in 5..13 {
            assert_eq!(read.number_of(&code(serial)), Some(CodeNumber { serial, ..FIRST }));
        }
        for other in [code(4), code(13), BreakGlassCode::derive(&key(), MachineId([4; 20]), FIRST)] {
            assert_eq!(read.number_of(&other), None);
        }
        let bytes = statement.sign(&key()).to_bytes();
        assert!(bytes.len() <= BreakGlassStatement::BYTES_MAX);
        let text = String::from_utf8(bytes).unwrap();
        assert!((5..13).all(|serial| !text.contains(&code(serial).to_string())));
    }

    #[test]
    fn another_machines_or_keys_statement_is_refused() {
        let statement = BreakGlassStatement::new(&key(), MachineId([4; 20]), FIRST, Timestamp::default());
        assert_eq!(verified(&statement), Err(VerifyError::OtherMachine(MachineId([4; 20]))));
        let other = TrustedKeys::new([SigningKey::from_seed(&[2; 32]).public_key()]);
        let bytes = statement.sign(&key()).to_bytes();
        assert_eq!(VerifiedBreakGlass::verify(&bytes, &other, MACHINE), Err(VerifyError::Untrusted));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = BreakGlassStatement::new(&key(), MACHINE, FIRST, Timestamp::default());
        let serial = |serial| BreakGlassStatement { first: CodeNumber { serial, ..FIRST }, ..good.clone() };
        let many = good.verifiers.iter().chain(&good.verifiers).copied().collect();
        for bad in [
            serial(0),
            serial(u64::MAX),
            serial(i64::MAX.unsigned_abs() - 3),
            BreakGlassStatement { verifiers: Vec::new(), ..good.clone() },
            BreakGlassStatement { verifiers: many, ..good.clone() },
        ] {
            assert!(matches!(verified(&bad), Err(VerifyError::Unreadable(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_full_log_fits_its_limit() {
        let number = CodeNumber { store_epoch: 1 << 62, incarnation: 1 << 62, serial: 1 << 62 };
        let used = BreakGlassUse { code: number, generation: 1 << 62, at: Timestamp::from_ticks(i64::MAX) };
        let mut log = BreakGlassLog { machine: MACHINE, uses: vec![used; BREAK_GLASS_USES_MAX] };
        let read = |log: &BreakGlassLog| {
            VerifiedBreakGlassLog::verify(&log.sign(&key()).to_bytes(), key().public_key(), MACHINE)
        };
        assert_eq!(read(&log).unwrap().log(), &log);
        log.uses.push(used);
        assert!(matches!(read(&log), Err(VerifyError::Unreadable(_))));
        log.uses = vec![BreakGlassUse { generation: u64::MAX, ..used }];
        assert!(matches!(read(&log), Err(VerifyError::Unreadable(_))));
    }

    proptest! {
        /// Whatever is read as a code is written as one that is read as the same.
        #[test]
        fn codes_read_back(serial in 1_u64.., text in "[0-9A-Za-z -]{26,36}") {
            let derived = code(serial);
            prop_assert_eq!(derived.to_string().parse(), Ok(derived));
            if let Ok(code) = text.parse::<BreakGlassCode>() {
                prop_assert_eq!(code.to_string().parse(), Ok(code));
            }
        }
    }
}
