//! How fast a machine may send: a burst, then a steady trickle. A machine that sends faster is not read for a while,
//! so that TCP slows it down.

use std::time::Duration;

use tokio::time::Instant;

/// What one unit stands for: a frame, or this many bytes of one.
const UNIT_BYTES: usize = 4096;
/// The trickle: fifty units a second, several times what a machine says that is restricted and released as often as the
/// API's own limits allow.
const UNIT_TIME: Duration = Duration::from_millis(20);
/// The burst: room for all that piles up on a machine without connection.
const BURST: Duration = Duration::from_millis(20 * 1024);

/// The pace of one connection (a generic cell rate algorithm).
pub(super) struct Pace {
    /// When all that was sent so far would have arrived at a trickle.
    due: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When the next frame may be read.
    pub(super) fn ready_at(&self) -> Instant {
        self.due.checked_sub(BURST).unwrap_or(self.due)
    }

    /// Counts a frame.
    pub(super) fn spend(&mut self, bytes: usize, now: Instant) {
        let units = u32::try_from(bytes / UNIT_BYTES + 1).unwrap_or(u32::MAX);
        self.due = self.due.max(now) + UNIT_TIME.saturating_mul(units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_trickle() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut passed = 0;
        while pace.ready_at() <= now {
            pace.spend(10, now);
            passed += 1;
        }
        assert_eq!(passed, 1025);
        for _ in 0..100 {
            now = pace.ready_at();
            pace.spend(10, now);
            assert_eq!(pace.ready_at(), now + UNIT_TIME);
        }
    }

    #[test]
    fn long_frames_count_for_more() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.spend(1024 * 1024, now);
        assert_eq!(pace.due, now + 257 * UNIT_TIME);
    }
}
