//! Break-glass as the gate keeps it: which codes would lift the restriction, which were used, and how soon another may
//! be tried.
//!
//! Owns the rules, and nothing else: reads no clock and writes nothing. A code is never kept before it was used.

use std::time::Duration;

use domain::machine::MachineId;
use domain::time::Timestamp;
use orders::{
    BREAK_GLASS_USES_MAX, BreakGlassCode, BreakGlassLog, BreakGlassUse, CodeNumber, TrustedKeys,
    VerifiedBreakGlass,
};
use serde::{Deserialize, Serialize};

use crate::end::{Anchor, Clocks};

/// The longest wait between two attempts. The codes cannot be guessed at any pace; whoever tries is to be noticed.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// What is kept, in two places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakGlass {
    /// Rises with every change: of two copies the higher counts.
    pub(crate) revision: u64,
    /// The exact bytes of the signed statement held.
    statement: Option<String>,
    /// The last code that was used; neither it nor any before it counts again.
    spent: Option<Number>,
    /// Oldest first.
    uses: Vec<Used>,
    /// Wrong codes since the last right one.
    failures: u32,
    /// Before this no code is looked at.
    not_before: Option<Anchor>,
}

/// The proof that a restriction was lifted by a code: whoever holds it has had the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lift {
    /// The code. It is spent, and secret no more.
    code: String,
    /// The signed statement that knows it.
    statement: String,
    at: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Number {
    store_epoch: u64,
    incarnation: u64,
    serial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    code: Number,
    generation: u64,
    at: i64,
}

impl Number {
    fn of(CodeNumber { store_epoch, incarnation, serial }: CodeNumber) -> Self {
        Self { store_epoch, incarnation, serial }
    }

    fn read(self) -> CodeNumber {
        let Self { store_epoch, incarnation, serial } = self;
        CodeNumber { store_epoch, incarnation, serial }
    }
}

impl Lift {
    /// Which code lifted the restriction; none when it is not proved.
    pub fn proved(&self, keys: &TrustedKeys, machine: MachineId) -> Option<CodeNumber> {
        let statement = VerifiedBreakGlass::verify(self.statement.as_bytes(), keys, machine).ok()?;
        statement.number_of(&self.code.parse().ok()?)
    }

    /// When, by the machine's clock.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_ticks(self.at)
    }
}

impl BreakGlass {
    /// Forgets every code and every use: those of another control plane.
    pub fn forget(&mut self) {
        *self = Self { revision: self.revision, ..Self::default() };
    }

    /// Takes up a signed statement, unless it is older than the one held.
    ///
    /// # Errors
    /// Why not, in one sentence.
    pub fn take_up(
        &mut self,
        envelope: &str,
        keys: &TrustedKeys,
        machine: MachineId,
        incarnation: u64,
    ) -> anyhow::Result<()> {
        let verified = VerifiedBreakGlass::verify(envelope.as_bytes(), keys, machine)?;
        let first = verified.statement().first;
        anyhow::ensure!(
            first.incarnation == incarnation,
            "the codes are for incarnation {}, this machine is incarnation {incarnation}",
            first.incarnation
        );
        if let Some(held) = self.held(keys, machine) {
            anyhow::ensure!(first >= held.statement().first, "the codes are older than those held");
        }
        self.statement = Some(envelope.to_owned());
        Ok(())
    }

    /// The statement held, when it is one about this machine.
    pub fn held(&self, keys: &TrustedKeys, machine: MachineId) -> Option<VerifiedBreakGlass> {
        VerifiedBreakGlass::verify(self.statement.as_deref()?.as_bytes(), keys, machine).ok()
    }

    /// How many codes of a statement would be taken.
    pub fn codes_left(&self, held: &VerifiedBreakGlass) -> u64 {
        let statement = held.statement();
        let serials = (statement.first.serial..).take(statement.verifiers.len());
        let is_left = |serial: &u64| self.counts(CodeNumber { serial: *serial, ..statement.first });
        serials.filter(is_left).count() as u64
    }

    fn counts(&self, number: CodeNumber) -> bool {
        self.spent.is_none_or(|spent| number > spent.read())
    }

    /// How long until a code is looked at.
    pub fn wait(&self, clocks: &Clocks) -> Duration {
        let wait = wait_after(self.failures);
        let until = match &self.not_before {
            Some(anchor) if anchor.is_of(clocks) => anchor.ends_at(),
            // A reboot gains nothing: the whole wait begins anew.
            Some(_) | None => wait,
        };
        until.saturating_sub(clocks.since_boot).min(wait)
    }

    /// Counts an attempt as failed, before it is looked at: what ends the gate in between saves nobody the wait.
    pub fn count_attempt(&mut self, clocks: &Clocks) {
        self.failures = self.failures.saturating_add(1);
        let until = clocks.since_boot.saturating_add(wait_after(self.failures));
        self.not_before = Some(Anchor::new(clocks.boot_id.clone(), until));
    }

    /// Which code this is, when it would lift the restriction now.
    pub fn number_of(&self, code: &BreakGlassCode, held: &VerifiedBreakGlass) -> Option<CodeNumber> {
        held.number_of(code).filter(|number| self.counts(*number))
    }

    /// The proof that this code of the statement held was given.
    pub fn lift(&self, code: &BreakGlassCode, at: Timestamp) -> Lift {
        Lift { code: code.to_string(), statement: self.statement.clone().unwrap_or_default(), at: at.ticks() }
    }

    /// The code is used, and counts no more. Whether that is news.
    pub fn spend(&mut self, number: CodeNumber, generation: u64, at: Timestamp) -> bool {
        if !self.counts(number) {
            return false;
        }
        let code = Number::of(number);
        self.spent = Some(code);
        if self.uses.len() >= BREAK_GLASS_USES_MAX {
            self.uses.remove(0);
        }
        self.uses.push(Used { code, generation, at: at.ticks() });
        self.failures = 0;
        self.not_before = None;
        true
    }

    /// The codes that were used; none before the first.
    pub fn log(&self, machine: MachineId) -> Option<BreakGlassLog> {
        let uses: Vec<_> = self
            .uses
            .iter()
            .map(|used| BreakGlassUse {
                code: used.code.read(),
                generation: used.generation,
                at: Timestamp::from_ticks(used.at),
            })
            .collect();
        (!uses.is_empty()).then_some(BreakGlassLog { machine, uses })
    }
}

/// One second after the first wrong code, and twice as long after each that follows.
fn wait_after(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            Duration::from_secs(1_u64.checked_shl(doublings).unwrap_or(u64::MAX)).min(WAIT_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use orders::{BREAK_GLASS_CODES, BreakGlassStatement, SigningKey};

    use super::*;

    const MACHINE: MachineId = MachineId([3; 20]);
    const AT: Timestamp = Timestamp::from_unix_seconds(100);

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn keys() -> TrustedKeys {
        TrustedKeys::new([key().public_key()])
    }

    fn number(serial: u64) -> CodeNumber {
        CodeNumber { store_epoch: 1, incarnation: 2, serial }
    }

    fn code(serial: u64) -> BreakGlassCode {
        BreakGlassCode::derive(&key(), MACHINE, number(serial))
    }

    fn envelope(first: CodeNumber) -> String {
        let statement = BreakGlassStatement::new(&key(), MACHINE, first, AT);
        String::from_utf8(statement.sign(&key()).to_bytes()).unwrap()
    }

    fn holding(first: u64) -> BreakGlass {
        let mut glass = BreakGlass::default();
        glass.take_up(&envelope(number(first)), &keys(), MACHINE, 2).unwrap();
        glass
    }

    fn clocks(boot_id: &str, seconds: u64) -> Clocks {
        Clocks {
            boot_id: boot_id.to_owned(),
            since_boot: Duration::from_secs(seconds),
            wall: Timestamp::default(),
        }
    }

    #[test]
    fn a_used_code_and_those_before_it_count_no_more() {
        let mut glass = holding(1);
        let held = glass.held(&keys(), MACHINE).unwrap();
        assert_eq!(glass.codes_left(&held), BREAK_GLASS_CODES as u64);
        assert_eq!(glass.number_of(&code(3), &held), Some(number(3)));
        assert!(glass.spend(number(3), 7, AT));
        for spent in 1..=3 {
            assert_eq!(glass.number_of(&code(spent), &held), None);
            assert!(!glass.spend(number(spent), 7, AT));
        }
        assert_eq!(glass.number_of(&code(4), &held), Some(number(4)));
        assert_eq!(glass.codes_left(&held), BREAK_GLASS_CODES as u64 - 3);
        let log = glass.log(MACHINE).unwrap();
        assert_eq!(log.uses, [BreakGlassUse { code: number(3), generation: 7, at: AT }]);
    }

    #[test]
    fn statements_never_go_back() {
        let mut glass = holding(5);
        let refused = |glass: &mut BreakGlass, first, incarnation| {
            glass.take_up(&envelope(first), &keys(), MACHINE, incarnation).unwrap_err().to_string()
        };
        assert!(refused(&mut glass, number(4), 2).contains("older"));
        assert!(refused(&mut glass, CodeNumber { incarnation: 1, ..number(9) }, 2).contains("incarnation 1"));
        let other = SigningKey::from_seed(&[9; 32]);
        let forged = BreakGlassStatement::new(&other, MACHINE, number(9), AT).sign(&other).to_bytes();
        assert!(glass.take_up(&String::from_utf8(forged).unwrap(), &keys(), MACHINE, 2).is_err());
        for later in [number(5), number(6), CodeNumber { store_epoch: 2, ..number(1) }] {
            glass.take_up(&envelope(later), &keys(), MACHINE, 2).unwrap();
            assert_eq!(glass.held(&keys(), MACHINE).unwrap().statement().first, later);
        }
    }

    #[test]
    fn a_lift_is_proved_by_its_code_only() {
        let lift = holding(1).lift(&code(2), AT);
        assert_eq!(lift.proved(&keys(), MACHINE), Some(number(2)));
        assert_eq!(lift.proved(&keys(), MachineId([4; 20])), None);
        assert_eq!(holding(1).lift(&code(99), AT).proved(&keys(), MACHINE), None);
        assert_eq!(BreakGlass::default().lift(&code(2), AT).proved(&keys(), MACHINE), None);
    }

    #[test]
    fn every_wrong_code_doubles_the_wait_and_a_reboot_begins_it_anew() {
        let mut glass = holding(1);
        assert_eq!(glass.wait(&clocks("a", 10)), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..12 {
            glass.count_attempt(&clocks("a", 1000));
            waits.push(glass.wait(&clocks("a", 1000)).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(glass.wait(&clocks("a", 1250)).as_secs(), 50);
        assert_eq!(glass.wait(&clocks("a", 1300)).as_secs(), 0);
        assert_eq!(glass.wait(&clocks("b", 0)).as_secs(), 300);
        assert_eq!(glass.wait(&clocks("b", 20)).as_secs(), 280);
        // A boot that cannot be told from the one before never waits longer than the whole.
        glass.count_attempt(&clocks("", 1 << 40));
        assert_eq!(glass.wait(&clocks("", 0)).as_secs(), 300);
        glass.failures = u32::MAX;
        glass.count_attempt(&clocks("a", u64::MAX));
        assert_eq!(glass.wait(&clocks("a", 0)).as_secs(), 300);
        glass.spend(number(1), 7, AT);
        assert_eq!(glass.wait(&clocks("a", 0)), Duration::ZERO);
    }

    #[test]
    fn the_log_keeps_the_last_uses() {
        let mut glass = holding(1);
        for serial in 1..=20 {
            glass.spend(number(serial), serial, AT);
        }
        let log = glass.log(MACHINE).unwrap();
        assert_eq!(log.uses.len(), BREAK_GLASS_USES_MAX);
        assert_eq!(log.uses.last().unwrap().code, number(20));
    }
}
