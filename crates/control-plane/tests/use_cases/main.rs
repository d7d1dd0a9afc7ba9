//! The use cases on a real database, with machines whose gates sign real receipts.
#![cfg(test)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_plane::{Caller, ControlPlane, CurrentOrder, Error, Links, ReportedState, Request, Settings};
use domain::machine::{Capabilities, MachineId, System};
use domain::machine_action::{MachineAction, MachineActionId, RequestSource, Status};
use domain::permission::Permission;
use domain::rate_limit::RateLimit;
use domain::restriction::{CanaryOutcome, Desired, Probe, Tier};
use domain::time::Timestamp;
use orders::{Outcome, Receipt, SigningKey, TrustedKeys, VerifiedOrder, VerifiedPolicy};
use store::Store;
use uuid::Uuid;

mod machine_action;
mod others;

const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Room for any test.
const GENEROUS: Settings = Settings {
    rate_limit: RateLimit::per_minute_and_hour(1000, 1000),
    action_deadline: Duration::from_secs(3600),
};

/// Remembers which machines were to be told of an order.
#[derive(Default)]
struct Told(Mutex<Vec<MachineId>>);

impl Links for Told {
    fn order_changed(&self, machine: MachineId) {
        self.0.lock().unwrap().push(machine);
    }

    fn policies_changed(&self) {}
}

struct Deployment {
    control: ControlPlane,
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
        let control = ControlPlane::open(store, key, settings, links).await.unwrap();
        Self { control, told, folder }
    }

    /// The same database after a restart.
    async fn restarted(self, settings: Settings) -> Self {
        let Self { control, told: _, folder } = self;
        drop(control);
        Self::open(folder, settings).await
    }

    async fn restrict(&self, machine: &Machine) -> Result<MachineAction, Error> {
        self.control.machine_restrict(&operator(), &machine.id.to_string(), request()).await
    }

    async fn unrestrict(&self, machine: &Machine) -> Result<MachineAction, Error> {
        self.control.machine_unrestrict(&operator(), &machine.id.to_string(), request()).await
    }

    async fn action(&self, action: &MachineAction) -> MachineAction {
        self.control.machine_action_fetch(&operator(), action.id).await.unwrap()
    }

    async fn order(&self, machine: &Machine) -> Option<CurrentOrder> {
        self.control.order_current(machine.id).await.unwrap()
    }

    /// The audit log's operations, oldest first.
    async fn operations(&self) -> Vec<String> {
        let entries = self.control.audit_entry_list(&operator(), None, 1000).await.unwrap();
        entries.into_iter().rev().map(|(_, entry)| entry.operation).collect()
    }
}

fn operator() -> Caller {
    Caller::operator()
}

fn request() -> Request {
    Request { comment: "why".to_owned(), source: RequestSource::PublicApi }
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
        let system = System {
            computer_dns_name: format!("lab-{}", self.id.0[0]),
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
            probe: Some(Probe { unlisted, listed: CanaryOutcome::Ran }),
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
