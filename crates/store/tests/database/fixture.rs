//! A database of its own for each test, and the nouns that the tests put into it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use domain::audit_entry::AuditEntry;
use domain::machine::{Capabilities, IpAddress, MachineId, System};
use domain::machine_action::{Kind, MachineAction, MachineActionId, Phase, RequestSource};
use domain::machine_group::MachineGroup;
use domain::restriction::{Fence, Tier};
use domain::time::Timestamp;
use store::audit_entry::AuditFilter;
use store::machine::machine_enroll;
use store::{Store, StoreError, Tx};
use tempfile::TempDir;
use uuid::Uuid;

/// A store in a folder that goes with it.
pub(crate) struct Database {
    pub(crate) store: Store,
    folder: TempDir,
}

impl Database {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cordon.db")).unwrap();
        Self { store, folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("cordon.db")
    }

    /// Closes the store and opens it again.
    pub(crate) fn reopened(self) -> Self {
        let Self { store, folder } = self;
        drop(store);
        let store = Store::open(&folder.path().join("cordon.db")).unwrap();
        Self { store, folder }
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.write(job).await.unwrap()
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.read(job).await.unwrap()
    }

    /// Another program's connection to the same file.
    pub(crate) fn outside(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

pub(crate) fn second(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

pub(crate) fn machine_id(number: u32) -> MachineId {
    let mut bytes = [0xab; 20];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    MachineId(bytes)
}

pub(crate) fn remote() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))
}

/// Enrolls the machine with this number at the time 100.
pub(crate) fn enroll(tx: &Tx<'_>, number: u32) -> Result<MachineId, StoreError> {
    let id = machine_id(number);
    machine_enroll(tx, id, &format!("key-{number}"), &format!("host-{number}"), second(100))?;
    Ok(id)
}

pub(crate) fn system() -> System {
    System {
        computer_dns_name: "lab-042".to_owned(),
        os_platform: "Linux".to_owned(),
        os_version: "Debian 12".to_owned(),
        os_build: "6.1.0".to_owned(),
        os_architecture: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        ip_addresses: vec![
            IpAddress { address: IpAddr::V4(Ipv4Addr::LOCALHOST), mac: None, up: true },
            IpAddress {
                address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 4)),
                mac: Some("00163E0A0B0C".to_owned()),
                up: false,
            },
            IpAddress { address: "fe80::5".parse().unwrap(), mac: Some("00163E0A0B0D".to_owned()), up: true },
        ],
    }
}

pub(crate) fn capabilities() -> Capabilities {
    Capabilities { tier: Some(Tier::Fanotify), missing: None }
}

pub(crate) fn action(machine: MachineId, generation: u64) -> MachineAction {
    let created_at = second(1000 + i64::try_from(generation).unwrap());
    MachineAction {
        id: MachineActionId(Uuid::new_v4()),
        kind: Kind::Restrict,
        phase: Phase::Queued,
        machine,
        computer_dns_name: "lab-042".to_owned(),
        fence: Fence { store_epoch: 1, incarnation: 1, generation },
        requestor: "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d".to_owned(),
        comment: "contain while triaging".to_owned(),
        source: RequestSource::PublicApi,
        external_id: None,
        policy: Some("default".to_owned()),
        ends_at: None,
        idempotency_key: None,
        bulk: None,
        created_at,
        updated_at: created_at,
        deadline: created_at.plus(Duration::from_secs(500)),
        cancellation: None,
        failure: None,
    }
}

pub(crate) fn entry(subject: &str) -> AuditEntry {
    AuditEntry {
        at: second(1),
        actor: AuditEntry::OPERATOR.to_owned(),
        operation: "machine_restrict".to_owned(),
        subject: subject.to_owned(),
        detail: String::new(),
    }
}

/// The newest entries of the audit log.
pub(crate) fn newest(top: u32) -> AuditFilter {
    AuditFilter { top, ..AuditFilter::default() }
}

/// A group without a rule.
pub(crate) fn group(name: &str, rank: u32) -> MachineGroup {
    MachineGroup {
        id: -1,
        name: name.to_owned(),
        description: String::new(),
        rank: Some(rank),
        rule: vec![],
        user_groups: vec![],
        policy: None,
    }
}
