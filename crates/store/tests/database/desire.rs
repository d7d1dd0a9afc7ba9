//! What is wanted of a machine against a model: whatever happens, in whatever order, a restriction ends when the order
//! says that is in force or on its way.

use domain::machine_action::{Kind, MachineAction, Phase};
use domain::restriction::{Desired, Fence, Reported};
use domain::time::Timestamp;
use proptest::prelude::*;
use store::machine::{
    machine_desire, machine_desire_withdraw, machine_enroll, machine_fetch, machine_reported, machines_ending,
};
use store::machine_action::machine_action_create;
use store::{StoreError, Tx};

use crate::fixture::{Database, action, enroll, machine_id, second};

#[derive(Debug, Clone)]
enum Step {
    /// A restriction, with its end.
    Restrict(Option<i64>),
    Release,
    /// The machine took up the last order.
    Report,
    /// A report of what it was before.
    ReportLate,
    Withdraw,
    /// The machine enrolled again, and has not reported.
    Enroll,
    /// A backup was restored: actions of before and after may share a generation.
    Restore,
}

/// An order that was made.
#[derive(Debug, Clone, Copy)]
struct Order {
    epoch: u64,
    generation: u64,
    desired: Desired,
    ends_at: Option<Timestamp>,
}

struct Model {
    epoch: u64,
    orders: Vec<Order>,
    desired: Desired,
    desired_generation: u64,
    wanted_generation: u64,
    ends_at: Option<Timestamp>,
    reported: Reported,
    reported_generation: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            epoch: 1,
            orders: Vec::new(),
            desired: Desired::Released,
            desired_generation: 0,
            wanted_generation: 0,
            ends_at: None,
            reported: Reported::Unknown,
            reported_generation: 0,
        }
    }

    fn order(&mut self, desired: Desired, ends_at: Option<Timestamp>) -> Order {
        self.desired_generation += 1;
        let order = Order { epoch: self.epoch, generation: self.desired_generation, desired, ends_at };
        self.orders.push(order);
        (self.desired, self.ends_at, self.wanted_generation) = (desired, ends_at, order.generation);
        order
    }

    fn report(&mut self, generation: u64) {
        self.reported_generation = generation;
        self.reported = match self.newest(generation).map(|order| order.desired) {
            Some(Desired::Restricted) => Reported::Restricted,
            Some(Desired::Released) | None => Reported::Released,
        };
    }

    fn withdraw(&mut self) {
        self.wanted_generation = self.reported_generation;
        (self.desired, self.ends_at) = if self.reported == Reported::Restricted {
            (Desired::Restricted, self.newest(self.reported_generation).and_then(|order| order.ends_at))
        } else {
            (Desired::Released, None)
        };
    }

    fn newest(&self, generation: u64) -> Option<&Order> {
        self.orders.iter().filter(|order| order.generation == generation).max_by_key(|order| order.epoch)
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::option::of(50_i64..60).prop_map(Step::Restrict),
        Just(Step::Release),
        Just(Step::Report),
        Just(Step::ReportLate),
        Just(Step::Withdraw),
        Just(Step::Enroll),
        Just(Step::Restore),
    ]
}

/// Does the step in the database and in the model.
fn take(tx: &Tx<'_>, model: &mut Model, step: &Step) -> Result<(), StoreError> {
    let id = machine_id(1);
    match step {
        Step::Restrict(ends_at) => {
            let ends_at = ends_at.map(second);
            let order = model.order(Desired::Restricted, ends_at);
            assert_eq!(machine_desire(tx, id, order.desired, None, ends_at)?, order.generation);
            record(tx, order)
        }
        Step::Release => {
            let order = model.order(Desired::Released, None);
            // An end without a restriction is dropped.
            assert_eq!(machine_desire(tx, id, order.desired, None, Some(second(55)))?, order.generation);
            record(tx, order)
        }
        Step::Report | Step::ReportLate => {
            let late = u64::from(matches!(step, Step::ReportLate));
            model.report(model.desired_generation.saturating_sub(late));
            machine_reported(tx, id, model.reported, model.reported_generation, second(150))
        }
        Step::Withdraw => {
            model.withdraw();
            machine_desire_withdraw(tx, id)
        }
        Step::Enroll => {
            (model.reported, model.reported_generation) = (Reported::Unknown, 0);
            machine_enroll(tx, id, "key", "host", second(160)).map(drop)
        }
        Step::Restore => {
            // The machine's own row is that of the backup: one generation less.
            model.epoch += 1;
            model.desired_generation = model.desired_generation.saturating_sub(1);
            Ok(())
        }
    }
}

fn record(tx: &Tx<'_>, order: Order) -> Result<(), StoreError> {
    let kind = match order.desired {
        Desired::Restricted => Kind::Restrict,
        Desired::Released => Kind::Unrestrict,
    };
    let fence = Fence { store_epoch: order.epoch, incarnation: 1, generation: order.generation };
    let made = MachineAction {
        kind,
        // One that is over, so that there may be more of them.
        phase: Phase::Enforced,
        ends_at: order.ends_at,
        fence,
        ..action(machine_id(1), order.generation)
    };
    machine_action_create(tx, &made, "order")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_restriction_ends_when_its_own_order_says(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let database = Database::new();
            database.write(|tx| enroll(tx, 1)).await;
            let mut model = Model::new();
            for step in steps {
                let done = step.clone();
                model = database.write(move |tx| take(tx, &mut model, &done).map(|()| model)).await;
                if matches!(step, Step::Restore) {
                    let back = "UPDATE machine SET desired_generation = max(desired_generation - 1, 0)";
                    database.outside().execute(back, []).unwrap();
                }
                let restriction =
                    database.read(|tx| machine_fetch(tx, machine_id(1))).await.unwrap().restriction;
                assert_eq!(
                    (restriction.desired, restriction.desired_generation, restriction.wanted_generation),
                    (model.desired, model.desired_generation, model.wanted_generation),
                    "{step:?}"
                );
                assert_eq!(restriction.ends_at, model.ends_at, "{step:?}");
                for now in [49, 55, 60] {
                    let due = model.ends_at.is_some_and(|ends_at| ends_at <= second(now));
                    let ending = database.read(move |tx| machines_ending(tx, second(now))).await;
                    assert_eq!(ending.len(), usize::from(due), "{step:?} at {now}");
                }
            }
        });
    }
}
