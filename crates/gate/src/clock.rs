//! The machine's clocks, and the alarm on the one that nobody can set.
//!
//! Reads and waits only: what the clocks mean is said in [`crate::end`].

use std::io;
use std::time::{Duration, SystemTime};

use domain::time::Timestamp;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::end::Clocks;

/// The wall clock.
pub(crate) fn wall() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// The kernel's boot id; empty when it cannot be read.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The clocks in the boot with this id.
pub(crate) fn clocks(boot_id: &str) -> Clocks {
    // Every kernel that the gate runs on has this clock. One that could not be read would end no restriction.
    let since_boot = nix::time::ClockId::CLOCK_BOOTTIME.now().map_or(Duration::ZERO, Duration::from);
    Clocks { boot_id: boot_id.to_owned(), since_boot, wall: wall() }
}

/// Goes off at a time since the boot, suspension included; right after it when the machine sleeps then.
#[derive(Debug)]
pub struct Alarm(TimerFd);

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?))
    }

    /// Sets it, instead of what it was set to.
    ///
    /// # Errors
    /// From the kernel.
    pub(crate) fn set(&self, since_boot: Duration) -> io::Result<()> {
        // Zero would mean never.
        let at = Expiration::OneShot(TimeSpec::from_duration(since_boot.max(Duration::from_nanos(1))));
        Ok(self.0.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// Goes off no more.
    ///
    /// # Errors
    /// From the kernel.
    pub(crate) fn unset(&self) -> io::Result<()> {
        Ok(self.0.unset()?)
    }

    /// Waits until it goes off, also when it is set or unset meanwhile.
    ///
    /// # Errors
    /// From the kernel.
    pub fn wait(&self) -> io::Result<()> {
        Ok(self.0.wait()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_goes_off_in_the_past_and_when_it_is_set_while_waited_for() {
        let alarm = std::sync::Arc::new(Alarm::new().unwrap());
        let now = || clocks("").since_boot;
        alarm.set(Duration::ZERO).unwrap();
        alarm.wait().unwrap();
        // Further away than the kernel can count.
        alarm.set(Duration::from_nanos(u64::MAX)).unwrap();
        let waiting = std::sync::Arc::clone(&alarm);
        let waiter = std::thread::spawn(move || waiting.wait());
        let end = now() + Duration::from_millis(20);
        alarm.set(end).unwrap();
        waiter.join().unwrap().unwrap();
        assert!(now() >= end);
    }
}
