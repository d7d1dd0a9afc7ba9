//! When the machine's certificate is to be renewed.

use std::time::Duration;

use domain::time::Timestamp;

use crate::effect::{Effect, Level, Timer};
use crate::random::Random;

/// How often the date is looked at: the machine's clock can be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// Mean time between attempts that failed.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// From when to when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub not_before: Timestamp,
    /// Until then.
    pub not_after: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Certificate {
    validity: Option<Validity>,
    due: Timestamp,
    is_asked: bool,
}

impl Certificate {
    /// A certificate came into use: it is renewed after two thirds of its lifetime, spread over a fifteenth.
    pub(crate) fn use_from(
        &mut self,
        validity: Validity,
        now: Timestamp,
        random: &mut Random,
        effects: &mut Vec<Effect>,
    ) {
        let lifetime = validity.not_after.since(validity.not_before);
        self.due = validity.not_before.plus(lifetime / 3 * 2).plus(random.up_to(lifetime / 15));
        self.validity = Some(validity);
        if std::mem::take(&mut self.is_asked) && now >= self.due {
            // Renewed, and due again at once: one of the clocks is wrong. Not in a loop.
            return effects.push(Effect::Arm(Timer::Renewal, random.around(RETRY_AFTER)));
        }
        self.look(now, effects);
    }

    pub(crate) fn look(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(validity) = self.validity else { return };
        if now < self.due {
            let wait = self.due.since(now).min(LOOK_EVERY);
            return effects.push(Effect::Arm(Timer::Renewal, wait));
        }
        if now > validity.not_after {
            // The server refuses a certificate that has ended, for renewal as for everything else.
            let text = "the machine's certificate has ended: enroll this machine again, or correct its clock";
            effects.push(Effect::Log(Level::Warn, text.to_owned()));
        }
        if !self.is_asked {
            self.is_asked = true;
            effects.push(Effect::Renew);
        }
    }

    pub(crate) fn failed(&mut self, reason: &str, random: &mut Random, effects: &mut Vec<Effect>) {
        self.is_asked = false;
        effects.push(Effect::Log(Level::Warn, format!("the certificate is not renewed: {reason}")));
        effects.push(Effect::Arm(Timer::Renewal, random.around(RETRY_AFTER)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(days: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_000_000).plus(Duration::from_secs(days * 86_400))
    }

    #[test]
    fn renewal_is_due_after_two_thirds_spread_and_retried() {
        let validity = Validity { not_before: day(0), not_after: day(90) };
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut certificate = Certificate::default();
            let mut effects = Vec::new();
            certificate.use_from(validity, day(0), &mut random, &mut effects);
            assert_eq!(effects, [Effect::Arm(Timer::Renewal, LOOK_EVERY)]);
            assert!(certificate.due >= day(60) && certificate.due <= day(66));
            effects.clear();
            certificate.look(day(59), &mut effects);
            assert!(!effects.contains(&Effect::Renew));
            effects.clear();
            certificate.look(day(67), &mut effects);
            certificate.look(day(67), &mut effects);
            assert_eq!(effects, [Effect::Renew], "asked once");
            effects.clear();
            certificate.failed("no server", &mut random, &mut effects);
            assert!(
                matches!(effects.last(), Some(Effect::Arm(Timer::Renewal, wait)) if *wait <= RETRY_AFTER * 2)
            );
            effects.clear();
            certificate.look(day(91), &mut effects);
            assert!(matches!(effects.as_slice(), [Effect::Log(Level::Warn, _), Effect::Renew]));
        }
    }

    #[test]
    fn a_certificate_without_lifetime_is_due_at_once() {
        let mut effects = Vec::new();
        let validity = Validity { not_before: day(1), not_after: day(0) };
        let mut certificate = Certificate::default();
        certificate.use_from(validity, day(1), &mut Random::new(1), &mut effects);
        assert!(effects.contains(&Effect::Renew));
        effects.clear();
        certificate.use_from(validity, day(1), &mut Random::new(1), &mut effects);
        assert!(matches!(effects.as_slice(), [Effect::Arm(Timer::Renewal, _)]), "no loop: {effects:?}");
    }
}
