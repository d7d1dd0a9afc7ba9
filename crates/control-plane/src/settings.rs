//! Settings that administrators change while the server runs. What nobody set is as the server was started with.

use std::time::Duration;

use domain::permission::Requirement;
use domain::rate_limit::RateLimit;
use domain::settings::Settings;
use store::setting::{setting_list, setting_set};
use store::{StoreError, Tx};

use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// One setting, by its name in the store and on the API.
struct Name {
    name: &'static str,
    range: std::ops::RangeInclusive<u64>,
    read: fn(&Settings) -> u64,
    write: fn(&mut Settings, u64),
}

const NAMES: [Name; 5] = [
    Name {
        name: "rateLimitPerMinute",
        range: 1..=10_000_000,
        read: |settings| settings.rate_limit.minute.calls.into(),
        write: |settings, value| {
            settings.rate_limit =
                RateLimit::per_minute_and_hour(small(value), settings.rate_limit.hour.calls);
        },
    },
    Name {
        name: "rateLimitPerHour",
        range: 1..=10_000_000,
        read: |settings| settings.rate_limit.hour.calls.into(),
        write: |settings, value| {
            settings.rate_limit =
                RateLimit::per_minute_and_hour(settings.rate_limit.minute.calls, small(value));
        },
    },
    Name {
        name: "actionDeadlineSeconds",
        range: 1..=365 * 24 * 60 * 60,
        read: |settings| settings.action_deadline.as_secs(),
        write: |settings, value| settings.action_deadline = Duration::from_secs(value),
    },
    Name {
        name: "bulkMachinesPerHour",
        range: 0..=10_000_000,
        read: |settings| settings.blast_radius.machines_max.into(),
        write: |settings, value| settings.blast_radius.machines_max = small(value),
    },
    Name {
        name: "bulkGroupPercentPerHour",
        range: 0..=100,
        read: |settings| settings.blast_radius.group_percent_max.into(),
        write: |settings, value| settings.blast_radius.group_percent_max = small(value),
    },
];

/// What every range above keeps small enough.
fn small(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A setting as it is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it is when nobody sets it.
    pub default: u64,
    /// Whether somebody set it.
    pub is_set: bool,
}

impl ControlPlane {
    /// All settings.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn settings_list(&self, caller: &Caller) -> Result<Vec<Setting>> {
        caller.require(Requirement::ADMINISTER)?;
        let defaults = self.0.settings_default;
        self.0
            .store
            .read(move |tx| {
                let set = setting_list(tx)?;
                let settings = settings_of(tx, defaults)?;
                let setting = |name: &Name| Setting {
                    name: name.name,
                    value: (name.read)(&settings),
                    default: (name.read)(&defaults),
                    is_set: set.contains_key(name.name),
                };
                Ok(NAMES.iter().map(setting).collect())
            })
            .await
    }

    /// Changes settings; none as a value takes back what was set. Names are as in [`Setting`].
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`]; from the store.
    pub async fn settings_update(&self, caller: &Caller, changes: Vec<(String, Option<u64>)>) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        for (name, value) in &changes {
            let Some(known) = NAMES.iter().find(|known| known.name == name) else {
                let names: Vec<_> = NAMES.iter().map(|known| known.name).collect();
                let message = format!("there is no setting {name:?}; there are: {}", names.join(", "));
                return Err(Error::InvalidInput(message));
            };
            if value.is_some_and(|value| !known.range.contains(&value)) {
                let (least, most) = (known.range.start(), known.range.end());
                return Err(Error::InvalidInput(format!("{name} is a whole number from {least} to {most}")));
            }
        }
        let actor = caller.name().to_owned();
        self.0
            .store
            .write(move |tx| {
                for (name, value) in &changes {
                    setting_set(tx, name, value.map(|value| value.to_string()).as_deref())?;
                    let detail = value.map_or_else(|| "default".to_owned(), |value| value.to_string());
                    audit::record(tx, now(), &actor, "setting_update", name, detail)?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        self.access_refresh().await
    }
}

/// The settings in force: what was set, and `defaults` for the rest.
pub(crate) fn settings_of(tx: &Tx<'_>, defaults: Settings) -> Result<Settings> {
    let set = setting_list(tx)?;
    let mut settings = defaults;
    for name in &NAMES {
        if let Some(text) = set.get(name.name) {
            let damaged = || StoreError::Damaged(format!("setting {} is {text:?}", name.name));
            let value: u64 = text.parse().map_err(|_not_a_number| damaged())?;
            (name.write)(&mut settings, value);
        }
    }
    Ok(settings)
}
