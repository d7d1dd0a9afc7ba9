//! When a restriction ends by itself, and which of the machine's clocks says so.
//!
//! Owns the rule, and nothing else: reads no clock and keeps nothing. Within one boot the clock that counts since the
//! boot decides, through suspension too: nobody can set it. It begins anew with each boot, so after a reboot the wall
//! clock is asked once how much is left, and the clock of the new boot decides from there. A wall clock that is behind
//! never makes a restriction longer than it was ordered to be.

use std::time::Duration;

use domain::time::Timestamp;
use orders::Order;
use serde::{Deserialize, Serialize};

/// The machine's clocks at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clocks {
    /// The kernel's boot id; empty when it cannot be read.
    pub boot_id: String,
    /// `CLOCK_BOOTTIME`.
    pub since_boot: Duration,
    /// The clock that people set.
    pub wall: Timestamp,
}

/// How long an order restricts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    issued_at: Timestamp,
    ends_at: Timestamp,
}

/// The end of a restriction on the clock of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    boot_id: String,
    /// Nanoseconds since that boot.
    ends_at: u64,
}

/// Whether a restriction is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is over.
    Over,
    /// It lasts until then: by the anchor that was kept, or by a new one that is to be kept.
    Lasts(Anchor),
}

impl Term {
    /// The order's; none when it has no end.
    pub fn of(order: &Order) -> Option<Self> {
        order.ends_at.map(|ends_at| Self { issued_at: order.issued_at, ends_at })
    }

    /// When the order says that the restriction ends.
    pub fn ends_at(&self) -> Timestamp {
        self.ends_at
    }

    /// Where a restriction stands whose end was anchored like this; without an anchor, one that is to begin.
    pub fn look(&self, kept: Option<&Anchor>, clocks: &Clocks) -> Standing {
        if let Some(anchor) = kept
            && anchor.boot_id == clocks.boot_id
            // What cannot be told apart may be two boots.
            && !clocks.boot_id.is_empty()
        {
            return if clocks.since_boot >= anchor.ends_at() {
                Standing::Over
            } else {
                Standing::Lasts(anchor.clone())
            };
        }
        let left = self.left(clocks.wall);
        if left.is_zero() {
            return Standing::Over;
        }
        Standing::Lasts(Anchor::new(clocks.boot_id.clone(), clocks.since_boot.saturating_add(left)))
    }

    /// How much is left by the wall clock, never more than all of it: a machine without a clock of its own begins each
    /// boot in the past.
    fn left(&self, wall: Timestamp) -> Duration {
        self.ends_at.since(wall).min(self.ends_at.since(self.issued_at))
    }
}

impl Anchor {
    /// A time since the boot with this id.
    pub fn new(boot_id: String, since_boot: Duration) -> Self {
        Self { boot_id, ends_at: u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Whether it is of the boot that these clocks are of, as far as can be told.
    pub fn is_of(&self, clocks: &Clocks) -> bool {
        self.boot_id == clocks.boot_id
    }

    /// The end, counted from the boot that the anchor is of.
    pub fn ends_at(&self) -> Duration {
        Duration::from_nanos(self.ends_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// Issued at 1000 hours since 1970, for ten hours.
    const TERM: Term = Term {
        issued_at: Timestamp::from_unix_seconds(1000 * HOUR.cast_signed()),
        ends_at: Timestamp::from_unix_seconds(1010 * HOUR.cast_signed()),
    };

    /// Clocks that show these hours.
    fn clocks(boot_id: &str, since_boot: u64, wall: i64) -> Clocks {
        Clocks {
            boot_id: boot_id.to_owned(),
            since_boot: Duration::from_secs(since_boot * HOUR),
            wall: Timestamp::from_unix_seconds(wall * HOUR.cast_signed()),
        }
    }

    fn anchor(boot_id: &str, hours: u64) -> Anchor {
        Anchor { boot_id: boot_id.to_owned(), ends_at: hours * HOUR * 1_000_000_000 }
    }

    #[test]
    fn which_clock_decides() {
        // Accepted an hour after it was signed, five hours after the boot: nine hours are left.
        let kept = anchor("a", 14);
        assert_eq!(TERM.look(None, &clocks("a", 5, 1001)), Standing::Lasts(kept.clone()));
        let lasts = |boot_id: &str, hours| Standing::Lasts(anchor(boot_id, hours));
        for (what, boot_id, since_boot, wall, expected) in [
            ("nothing happened", "a", 6, 1002, lasts("a", 14)),
            ("the last moment", "a", 13, 1009, lasts("a", 14)),
            ("the end", "a", 14, 1010, Standing::Over),
            ("long after", "a", 99, 1095, Standing::Over),
            ("the clock was set forward", "a", 6, 9999, lasts("a", 14)),
            ("the clock was set back", "a", 13, 0, lasts("a", 14)),
            ("the clock was set back, and the end has come", "a", 14, 0, Standing::Over),
            ("the clock is before 1970", "a", 14, -5, Standing::Over),
            ("a reboot", "b", 0, 1003, lasts("b", 7)),
            ("a reboot long ago", "b", 2, 1009, lasts("b", 3)),
            ("the boot clock is beyond the old anchor", "b", 20, 1009, lasts("b", 21)),
            ("the end came during the reboot", "b", 0, 1010, Standing::Over),
            ("the clock was set forward before the reboot", "b", 0, 9999, Standing::Over),
            ("the clock was set back before the reboot", "b", 1, 900, lasts("b", 11)),
            ("a boot without a clock", "b", 1, 0, lasts("b", 11)),
            ("a boot that cannot be told", "", 1, 1004, lasts("", 7)),
        ] {
            assert_eq!(TERM.look(Some(&kept), &clocks(boot_id, since_boot, wall)), expected, "{what}");
        }
    }

    #[test]
    fn a_new_anchor_decides_from_then_on() {
        let Standing::Lasts(second) = TERM.look(Some(&anchor("a", 14)), &clocks("b", 1, 1004)) else {
            panic!("over")
        };
        assert_eq!(second, anchor("b", 7));
        assert_eq!(TERM.look(Some(&second), &clocks("b", 2, 9999)), Standing::Lasts(second.clone()));
        assert_eq!(TERM.look(Some(&second), &clocks("b", 7, 0)), Standing::Over);
        // Two boots whose ids cannot be read are not taken for one.
        assert_eq!(TERM.look(Some(&anchor("", 3)), &clocks("", 5, 1004)), Standing::Lasts(anchor("", 11)));
    }

    #[test]
    fn what_begins_is_never_longer_than_ordered() {
        for (what, wall, expected) in [
            ("the clocks agree", 1000, Standing::Lasts(anchor("a", 15))),
            ("this one is behind", 900, Standing::Lasts(anchor("a", 15))),
            ("this one is ahead", 1008, Standing::Lasts(anchor("a", 7))),
            ("the end has passed", 1010, Standing::Over),
            ("the end passed long ago", 5000, Standing::Over),
        ] {
            assert_eq!(TERM.look(None, &clocks("a", 5, wall)), expected, "{what}");
        }
    }

    #[test]
    fn the_ends_of_time_are_borne() {
        let forever =
            Term { issued_at: Timestamp::from_ticks(i64::MIN), ends_at: Timestamp::from_ticks(i64::MAX) };
        let clocks = Clocks { since_boot: Duration::MAX, ..clocks("a", 0, 0) };
        let Standing::Lasts(anchor) = forever.look(None, &clocks) else { panic!("over") };
        assert_eq!(anchor.ends_at, u64::MAX);
        assert_eq!(forever.look(Some(&anchor), &clocks), Standing::Over);
    }
}
