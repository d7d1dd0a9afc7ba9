//! Settings that administrators change while the server runs.

use std::time::Duration;

use crate::rate_limit::RateLimit;

/// How many machines one caller may change by bulk calls in any hour without the right *Bulk remediation*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlastRadius {
    /// At most so many machines.
    pub machines_max: u32,
    /// And at most so many of a hundred machines of one group, but always one machine.
    pub group_percent_max: u32,
}

impl BlastRadius {
    /// What applies when nobody has set it.
    pub const DEFAULT: Self = Self { machines_max: 100, group_percent_max: 25 };

    /// How many machines of a group of `size` are within the limit.
    pub fn of_group(self, size: u64) -> u64 {
        (size.saturating_mul(u64::from(self.group_percent_max)) / 100).max(1)
    }
}

/// All settings in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many calls of one operation one app may make.
    pub rate_limit: RateLimit,
    /// How long an action may stay open before it times out.
    pub action_deadline: Duration,
    /// The limit of bulk calls.
    pub blast_radius: BlastRadius,
}

impl Default for Settings {
    /// The vendor's numbers where it has some.
    fn default() -> Self {
        Self {
            rate_limit: RateLimit::VENDOR,
            action_deadline: crate::machine_action::DEADLINE_DEFAULT,
            blast_radius: BlastRadius::DEFAULT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_of_a_group_is_never_none() {
        let blast_radius = BlastRadius { machines_max: 100, group_percent_max: 25 };
        for (size, within) in [(0, 1), (1, 1), (4, 1), (8, 2), (1000, 250)] {
            assert_eq!(blast_radius.of_group(size), within);
        }
    }
}
