//! What `bench api` measures on: 100,000 machines and 1,000,000 actions of three months.
//!
//! Written through the store's own functions, while the server that owns the database has nothing to do. Actions come in
//! waves, each machine once in each, as campaigns do. Among the values of every property there are frequent and rare
//! ones, and the rare ones are as far from the start of the list as they can be.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, IpAddress, MachineId, System};
use domain::machine_action::{Kind, MachineAction, MachineActionId, Phase, RequestSource};
use domain::machine_group::{Condition, MachineGroup, RuleOperator, RuleProperty};
use domain::restriction::{Desired, Fence, Reported, Tier};
use domain::time::Timestamp;
use sha2::Digest as _;
use store::machine::{
    machine_connected, machine_desire, machine_enroll, machine_group_assign, machine_reported,
    machine_tag_add, machines_seen,
};
use store::machine_action::machine_action_create_many;
use store::machine_group::machine_group_create;
use store::{Store, StoreError, Tx};
use uuid::Uuid;

/// How many machines there are.
pub(super) const MACHINES: u32 = 100_000;
/// How many actions each machine has.
const WAVES: u32 = 10;
/// How many actions there are.
pub(super) const ACTIONS: u32 = MACHINES * WAVES;
/// How many machines the bulk call is about: those with the tag `bulk`.
pub(super) const BULK: u32 = 10_000;
/// Rows of one transaction.
const BATCH: u32 = 10_000;
/// Between two actions.
const APART: Duration = Duration::from_secs(8);
/// As long as a signed order and a receipt are together.
const SIGNED_BYTES: usize = 1600;

/// What the bench must know to ask for it.
pub(super) struct Seed {
    /// A machine of the largest group.
    pub(super) machine: MachineId,
    /// One of its actions.
    pub(super) action: Uuid,
}

/// Fills the database of a running server.
pub(super) async fn fill(database: &Path, now: Timestamp) -> Result<Seed> {
    let store = Store::open(database)?;
    let mut machines: Vec<MachineId> = (0..MACHINES).map(machine_id).collect();
    // In the order of the index, which spares it from being written in many places at once.
    machines.sort_unstable();
    store.write(groups).await?;
    let numbers: Vec<u32> = (0..MACHINES).collect();
    for batch in
        machines.iter().copied().zip(numbers.iter().copied()).collect::<Vec<_>>().chunks(BATCH as usize)
    {
        let batch = batch.to_vec();
        store.write(move |tx| batch.iter().try_for_each(|(id, rank)| machine(tx, *id, *rank, now))).await?;
    }
    let all: Vec<(MachineId, u32)> = machines.iter().copied().zip(numbers).collect();
    for wave in 0..WAVES {
        for batch in all.chunks(BATCH as usize) {
            let actions: Vec<_> = batch.iter().map(|(id, rank)| action(*id, *rank, wave, now)).collect();
            store.write::<_, StoreError>(move |tx| machine_action_create_many(tx, &actions)).await?;
        }
    }
    let last = machines.last().copied().unwrap_or(MachineId([0; 20]));
    Ok(Seed { machine: last, action: action_id(ACTIONS - 1) })
}

fn machine_id(number: u32) -> MachineId {
    let digest = sha2::Sha256::digest(number.to_be_bytes());
    MachineId(digest.first_chunk().copied().unwrap_or_default())
}

fn action_id(number: u32) -> Uuid {
    // Of version 7, as the server makes them: they rise with the time.
    Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 | u128::from(number) << 80 | u128::from(number))
}

/// Groups of 10, 2,000 and 60,000 machines.
fn groups(tx: &Tx<'_>) -> Result<(), StoreError> {
    for (rank, name) in (1_u32..).zip(["small", "medium", "large"]) {
        let condition = Condition {
            property: RuleProperty::Name,
            operator: RuleOperator::StartsWith,
            value: format!("{name}-"),
        };
        machine_group_create(
            tx,
            &MachineGroup {
                id: 0,
                name: name.to_owned(),
                description: String::new(),
                rank: Some(rank),
                rule: vec![condition],
                user_groups: Vec::new(),
                policy: None,
            },
        )?;
    }
    Ok(())
}

/// Spread over the list.
fn group_of(rank: u32) -> (i64, &'static str) {
    match (rank % 10_000, rank % 50, rank % 5) {
        (9_999, _, _) => (1, "small"),
        (_, 1, _) => (2, "medium"),
        (_, _, 0 | 2 | 3) => (3, "large"),
        _ => (0, "host"),
    }
}

fn machine(tx: &Tx<'_>, id: MachineId, rank: u32, now: Timestamp) -> Result<(), StoreError> {
    let is_rare = rank >= MACHINES - 5;
    let (group, prefix) = group_of(rank);
    let name = format!("{prefix}-{rank:06}.prod.example");
    let system = System {
        computer_dns_name: name.clone(),
        os_platform: if is_rare { "Other" } else { "Linux" }.to_owned(),
        os_version: if is_rare { "Alpine 3.20" } else { "Debian 12" }.to_owned(),
        os_build: "6.1.0-32-amd64".to_owned(),
        os_architecture: "x86_64".to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ip_addresses: vec![IpAddress {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + rank).into(),
            mac: Some("00163E0A0B0C".to_owned()),
            up: true,
        }],
    };
    let months_ago = now.minus(Duration::from_secs(100 * 24 * 3600));
    machine_enroll(tx, id, "key", &name, months_ago)?;
    let capabilities = Capabilities { tier: Some(Tier::Fanotify), missing: None };
    machine_connected(tx, id, &system, &capabilities, std::net::Ipv4Addr::LOCALHOST.into(), months_ago)?;
    let policy = Some(("default", Sha256Digest([1; 32])));
    let ends_at = is_rare.then(|| now.plus(Duration::from_secs(365 * 24 * 3600)));
    let desired = if is_rare { Desired::Restricted } else { Desired::Released };
    machine_desire(tx, id, desired, policy, ends_at)?;
    // The rare ones drift.
    machine_reported(tx, id, Reported::Released, if is_rare { 0 } else { 1 }, months_ago)?;
    let silent =
        if is_rare { Duration::from_secs(30 * 24 * 3600) } else { Duration::from_secs((rank % 600).into()) };
    machines_seen(tx, &[(id, now.minus(silent))])?;
    machine_group_assign(tx, &[(id, group)])?;
    for (tag, has) in [
        ("server", rank.is_multiple_of(2)),
        ("rare", is_rare),
        ("bulk", rank.is_multiple_of(MACHINES / BULK)),
    ] {
        if has {
            machine_tag_add(tx, id, tag)?;
        }
    }
    Ok(())
}

/// A machine's action of a wave, and its signed order.
fn action(machine: MachineId, rank: u32, wave: u32, now: Timestamp) -> (MachineAction, String) {
    let number = wave * MACHINES + rank;
    let created_at = now.minus(APART * (ACTIONS - number));
    let is_rare = number < 30;
    // Of a hundred, one failed, one ran out of time and one was withdrawn.
    let phase = match number % 100 {
        17 => Phase::ProbeFailed,
        37 => Phase::Expired,
        57 => Phase::Superseded,
        _ if is_rare => Phase::Rejected,
        _ => Phase::Enforced,
    };
    let action = MachineAction {
        id: MachineActionId(action_id(number)),
        kind: if is_rare { Kind::Unrestrict } else { Kind::Restrict },
        phase,
        machine,
        computer_dns_name: format!("{}-{rank:06}.prod.example", group_of(rank).1),
        // Of an epoch before: the orders of this one count their generations from the first.
        fence: Fence { store_epoch: 0, incarnation: 1, generation: u64::from(wave) + 1 },
        requestor: match number {
            _ if is_rare => "alice@example.com".to_owned(),
            _ if number.is_multiple_of(3) => format!("playbook-{}", number % 40),
            _ => "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d".to_owned(),
        },
        comment: format!("contain while triaging incident {}", number / 50),
        source: RequestSource::PublicApi,
        external_id: (is_rare || number % 40 == 3).then(|| format!("INC-{:06}", number / 50)),
        policy: Some("default".to_owned()),
        ends_at: None,
        idempotency_key: None,
        bulk: None,
        created_at,
        updated_at: created_at.plus(Duration::from_secs(if phase == Phase::Enforced { 1 } else { 3600 })),
        deadline: created_at.plus(Duration::from_secs(3 * 24 * 3600)),
        cancellation: None,
        failure: None,
    };
    (action, "x".repeat(SIGNED_BYTES))
}
