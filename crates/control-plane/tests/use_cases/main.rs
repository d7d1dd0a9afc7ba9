//! The use cases on a real database, with machines whose gates sign real receipts.
#![cfg(test)]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_plane::{
    AppDraft, Bearer, Caller, ControlPlane, CurrentOrder, Error, Groups, Links, MachineGroupDraft,
    PreviewStanding, ReportedState, Request,
};
use domain::app::{App, CLI_APP_ID};
use domain::audit_entry::AuditEntry;
use domain::digest::Sha256Digest;
use domain::machine::{Capabilities, MachineId, System};
use domain::machine_action::{MachineAction, MachineActionId, RequestSource, Status};
use domain::machine_group::{Condition, RuleOperator, RuleProperty};
use domain::permission::{Permission, Right};
use domain::rate_limit::RateLimit;
use domain::restriction::{CanaryOutcome, Desired, Probe, Tier};
use domain::role::{ADMINISTRATOR, Role};
use domain::settings::{BlastRadius, Settings};
use domain::time::Timestamp;
use orders::{Outcome, Receipt, SigningKey, TrustedKeys, VerifiedOrder, VerifiedPolicy};
use store::audit_entry::AuditFilter;
use store::{Store, StoreError};
use uuid::Uuid;

mod access;
mod app;
mod bulk;
mod expiry;
mod impact_preview;
mod machine_action;
mod machine_group;
mod others;
mod policy;
mod role;
mod settings;
mod user;

const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Room for any test.
const GENEROUS: Settings = Settings {
    rate_limit: RateLimit::per_minute_and_hour(1000, 1000),
    action_deadline: Duration::from_secs(3600),
    blast_radius: BlastRadius::DEFAULT,
};

/// Remembers which machines were to be told of an order, which are connected, and which previews were wanted.
#[derive(Default)]
struct Told(Mutex<Vec<MachineId>>, Mutex<HashSet<MachineId>>, Mutex<Vec<(MachineId, Sha256Digest)>>);

impl Links for Told {
    fn order_changed(&self, machine: MachineId) {
        self.0.lock().unwrap().push(machine);
    }

    fn policies_changed(&self) {}

    fn is_connected(&self, machine: MachineId) -> bool {
        self.1.lock().unwrap().contains(&machine)
    }

    fn preview_wanted(
        &self,
        machine: MachineId,
        policy: Sha256Digest,
        _age_max: Duration,
    ) -> PreviewStanding {
        self.2.lock().unwrap().push((machine, policy));
        if self.is_connected(machine) {
            PreviewStanding::Underway { files_done: 1, files_total: 2 }
        } else {
            PreviewStanding::NotConnected
        }
    }
}

struct Deployment {
    control: ControlPlane,
    /// The database itself, for what no use case does.
    store: Store,
    told: Arc<Told>,
    folder: tempfile::TempDir,
}

impl Deployment {
    async fn start(settings: Settings) -> Self {
        Self::open(tempfile::tempdir().unwrap(), settings).await
    }

    async fn open(folder: tempfile::TempDir, settings: Settings) -> Self {
        let store = Store::open(&folder.path().join("cordon.db")).unwrap();
        let told = Arc::new(Told::default());
        let key = SigningKey::from_seed(&[1; 32]);
        let links: Arc<dyn Links> = Arc::<Told>::clone(&told);
        let control = ControlPlane::open(store.clone(), key, settings, links).await.unwrap();
        Self { control, store, told, folder }
    }

    /// The same database after a restart.
    async fn restarted(self, settings: Settings) -> Self {
        let Self { control, store, told: _, folder } = self;
        drop((control, store));
        Self::open(folder, settings).await
    }

    async fn restrict(&self, machine: &Machine) -> Result<MachineAction, Error> {
        self.control.machine_restrict(&operator(), &machine.id.to_string(), request()).await
    }

    async fn unrestrict(&self, machine: &Machine) -> Result<MachineAction, Error> {
        self.control.machine_unrestrict(&operator(), &machine.id.to_string(), request()).await
    }

    async fn action(&self, action: &MachineAction) -> MachineAction {
        self.action_by_id(action.id).await
    }

    async fn action_by_id(&self, id: MachineActionId) -> MachineAction {
        self.control.machine_action_fetch(&operator(), id).await.unwrap()
    }

    async fn order(&self, machine: &Machine) -> Option<CurrentOrder> {
        self.control.order_current(machine.id).await.unwrap()
    }

    /// The audit log, oldest first.
    async fn entries(&self) -> Vec<AuditEntry> {
        let filter = AuditFilter { top: 1000, ..AuditFilter::default() };
        let entries = self.control.audit_entry_list(&operator(), filter).await.unwrap();
        entries.into_iter().rev().map(|(_, entry)| entry).collect()
    }

    /// The audit log's operations, oldest first.
    async fn operations(&self) -> Vec<String> {
        self.entries().await.into_iter().map(|entry| entry.operation).collect()
    }

    /// Enrolls machines that never connect, with the numbers 0 and up.
    async fn enroll_many(&self, count: usize) -> Vec<MachineId> {
        let ids: Vec<MachineId> = (0..count).map(numbered).collect();
        let enrolled = ids.clone();
        let at = Timestamp::from(std::time::SystemTime::now());
        let key = SigningKey::from_seed(&[7; 32]).public_key().to_string();
        self.store
            .write(move |tx| {
                for (number, id) in enrolled.into_iter().enumerate() {
                    store::machine::machine_enroll(tx, id, &key, &format!("fleet-{number}"), at)?;
                }
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        ids
    }

    /// Makes an app; its name is made up.
    async fn app(&self, permissions: &[Permission], machine_groups: Option<&[&str]>) -> App {
        let name = format!("app {}", Uuid::new_v4());
        let draft = AppDraft { machine_groups: machine_groups.map(texts), ..app_draft(&name, permissions) };
        self.control.app_create(&operator(), draft).await.unwrap().0
    }

    /// A new app as a caller.
    async fn app_caller(&self, permissions: &[Permission], machine_groups: Option<&[&str]>) -> Caller {
        let app = self.app(permissions, machine_groups).await;
        self.control.caller(bearer(&app)).unwrap()
    }

    /// A person of another issuer, with all scopes.
    fn person(&self, name: &str, groups: &[&str]) -> Caller {
        self.control.caller(claimed(name, groups)).unwrap()
    }

    async fn role(&self, name: &str, rights: &[Right], user_groups: &[&str]) {
        self.control.role_save(&operator(), role(name, rights, user_groups)).await.unwrap();
    }

    /// Makes or changes a machine group.
    async fn group(&self, name: &str, rule: &[(RuleProperty, RuleOperator, &str)], user_groups: &[&str]) {
        let draft = MachineGroupDraft { user_groups: texts(user_groups), ..group_draft(name, rule) };
        self.control.machine_group_save(&operator(), name, draft).await.unwrap();
    }

    /// The name of a machine's group.
    async fn group_of(&self, machine: MachineId) -> String {
        self.control.machine_fetch(&operator(), &machine.to_string()).await.unwrap().group_name
    }
}

fn operator() -> Caller {
    Caller::operator()
}

fn request() -> Request {
    Request {
        comment: "why".to_owned(),
        source: RequestSource::PublicApi,
        external_id: None,
        expires_in: None,
        policy: None,
        idempotency_key: None,
    }
}

fn app_draft(name: &str, permissions: &[Permission]) -> AppDraft {
    AppDraft {
        name: name.to_owned(),
        permissions: permissions.to_vec(),
        is_public: false,
        redirect_uris: Vec::new(),
        machine_groups: None,
        bulk_machines_max: None,
    }
}

fn group_draft(name: &str, rule: &[(RuleProperty, RuleOperator, &str)]) -> MachineGroupDraft {
    let condition = |(property, operator, value): &(RuleProperty, RuleOperator, &str)| Condition {
        property: *property,
        operator: *operator,
        value: (*value).to_owned(),
    };
    MachineGroupDraft {
        name: name.to_owned(),
        description: String::new(),
        rank: None,
        rule: rule.iter().map(condition).collect(),
        user_groups: Vec::new(),
        policy: None,
    }
}

fn role(name: &str, rights: &[Right], user_groups: &[&str]) -> Role {
    Role {
        name: name.to_owned(),
        description: String::new(),
        rights: rights.iter().copied().collect(),
        user_groups: texts(user_groups),
        bulk_machines_max: None,
    }
}

/// The token of an app that claims everything: what counts is what the app holds.
fn bearer(app: &App) -> Bearer {
    Bearer::App { app: app.id.to_string(), permissions: Permission::ALL.to_vec() }
}

/// The token of a person of another issuer, with all scopes.
fn claimed(name: &str, groups: &[&str]) -> Bearer {
    Bearer::User {
        app: CLI_APP_ID.to_string(),
        name: name.to_owned(),
        scopes: Permission::ALL.to_vec(),
        groups: Groups::Claimed(texts(groups)),
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A machine id that no machine with a gate of its own has.
fn numbered(number: usize) -> MachineId {
    let mut id = [0xfe; 20];
    id[12..].copy_from_slice(&number.to_be_bytes());
    MachineId(id)
}

/// Checks that a result is one error; its text.
#[track_caller]
fn refused<T>(result: Result<T, Error>, is_expected: impl FnOnce(&Error) -> bool) -> String {
    let error = result.err().expect("this was to be refused");
    assert!(is_expected(&error), "{error:?}");
    error.to_string()
}

fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. })
}

fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::InvalidInput(_))
}

fn is_disallowed(error: &Error) -> bool {
    matches!(error, Error::Disallowed(_))
}

fn is_unauthenticated(error: &Error) -> bool {
    matches!(error, Error::Unauthenticated(_))
}

/// A machine with a gate of its own.
struct Machine {
    id: MachineId,
    incarnation: u64,
    gate: SigningKey,
}

impl Machine {
    /// Enrolls and connects.
    async fn join(deployment: &Deployment, number: u8) -> Self {
        let mut machine =
            Self { id: MachineId([number; 20]), incarnation: 0, gate: SigningKey::from_seed(&[number; 32]) };
        machine.enroll(deployment).await;
        machine.connect(deployment, 0, false).await;
        machine
    }

    async fn enroll(&mut self, deployment: &Deployment) {
        let hour = Duration::from_secs(3600);
        let (_, secret) =
            deployment.control.enrollment_token_create(&operator(), 1, hour, String::new()).await.unwrap();
        let key = self.gate.public_key();
        let name = format!("lab-{}", self.id.0[0]);
        self.incarnation =
            deployment.control.machine_enroll(&secret, self.id, key, &name, REMOTE).await.unwrap();
    }

    async fn connect(&self, deployment: &Deployment, generation: u64, restricted: bool) {
        let name = format!("lab-{}", self.id.0[0]);
        self.connect_as(deployment, &name, generation, restricted).await;
    }

    async fn connect_as(&self, deployment: &Deployment, name: &str, generation: u64, restricted: bool) {
        let system = System {
            computer_dns_name: name.to_owned(),
            os_platform: "Linux".to_owned(),
            ..System::default()
        };
        let capabilities = Capabilities { tier: Some(Tier::Fanotify), missing: None };
        let reported = self.reports(generation, restricted);
        deployment.control.machine_connected(self.id, system, capabilities, reported, REMOTE).await.unwrap();
    }

    fn reports(&self, generation: u64, restricted: bool) -> ReportedState {
        ReportedState { incarnation: self.incarnation, generation, restricted }
    }

    /// Verifies an order as the gate does.
    fn obey(&self, order: &CurrentOrder) -> orders::Order {
        let keys = TrustedKeys::new([SigningKey::from_seed(&[1; 32]).public_key()]);
        let now = Timestamp::from(std::time::SystemTime::now());
        let verified = VerifiedOrder::verify(order.envelope.as_bytes(), &keys, self.id, now).unwrap();
        verified.order().clone()
    }

    fn receipt(&self, order: &orders::Order, outcome: Outcome) -> String {
        let unlisted = match order.desired {
            Desired::Restricted => CanaryOutcome::Refused,
            Desired::Released => CanaryOutcome::Ran,
        };
        let receipt = Receipt {
            machine: self.id,
            fence: order.fence,
            action: order.action,
            desired: order.desired,
            outcome,
            probe: Some(Probe { unlisted, listed: CanaryOutcome::Ran, mappings: None }),
            tier: Tier::Fanotify,
            policy: order.policy,
            baseline: None,
            boot_id: "boot".to_owned(),
            issued_at: order.issued_at,
        };
        String::from_utf8(receipt.sign(&self.gate).to_bytes()).unwrap()
    }

    /// Carries out the current order and hands in the receipt.
    async fn prove(&self, deployment: &Deployment) {
        let order = self.obey(&deployment.order(self).await.unwrap());
        let receipt = self.receipt(&order, Outcome::Enforced);
        deployment.control.receipt_accept(self.id, &receipt).await.unwrap();
    }
}
