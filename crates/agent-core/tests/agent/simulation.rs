//! Whole histories: frames dropped, repeated, reordered and delayed, connections cut, agent and gate killed. In the end
//! the machine is what the last order says, and nothing was lost that nobody counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_core::{Agent, Effect, Input, InventoryEnd, LinkState, Notice, Timer};
use agent_protocol::{FromAgent, FromServer, InventorySummary};
use domain::restriction::Desired;
use domain::time::Timestamp;
use gate_protocol::{Reply, Request};
use orders::Outcome;
use proptest::prelude::*;

use crate::gate::{Death, Gate};
use crate::identity;
use crate::server::Server;

/// What happens to the world from outside.
#[derive(Debug, Clone)]
enum Step {
    Restrict,
    Release,
    MakePolicy,
    /// This many unlisted programs are tried, one a millisecond.
    Deny(u16),
    CutLink,
    KillAgent,
    /// Killed, and started again after so many milliseconds.
    KillGate(u32),
    ChangePackages,
    /// How many of a hundred messages, connections and requests go wrong from here on.
    Chaos(u8),
    /// So many milliseconds pass.
    Wait(u32),
}

/// What is going to happen.
#[derive(Debug)]
enum Event {
    Timer(u64, Timer, u64),
    GateUp(u64),
    GateDown(u64),
    GateRequest(u64, Request),
    GateReply(u64, Reply),
    GateStart,
    LinkUp(u64),
    LinkDown(u64),
    ToServer(u64, FromAgent),
    ToAgent(u64, FromServer),
    Pong(u64),
    InventoryEnd(u64, u64),
    Deny,
}

struct World {
    agent: Agent,
    agent_life: u64,
    gate: Gate,
    is_gate_alive: bool,
    server: Server,
    now_ms: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    timers: BTreeMap<Timer, u64>,
    gate_connection: u64,
    is_gate_asked: bool,
    link: u64,
    scan: Option<u64>,
    is_scan_stopped: bool,
    scans: u32,
    chaos: u8,
    random: u64,
    denied: BTreeSet<String>,
    denials_ahead: usize,
    lost_with_agent: u64,
    told: Vec<Notice>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (agent, effects) = Agent::start(identity(), seed);
        let mut world = Self {
            agent,
            agent_life: 0,
            gate: Gate::new(),
            is_gate_alive: true,
            server: Server::new(),
            now_ms: 0,
            sequence: 0,
            events: BTreeMap::new(),
            timers: BTreeMap::new(),
            gate_connection: 0,
            is_gate_asked: false,
            link: 0,
            scan: None,
            is_scan_stopped: false,
            scans: 0,
            chaos: 0,
            random: seed,
            denied: BTreeSet::new(),
            denials_ahead: 0,
            lost_with_agent: 0,
            told: Vec::new(),
        };
        world.carry_out(effects);
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % sides
    }

    fn goes_wrong(&mut self) -> bool {
        self.dice(100) < u64::from(self.chaos)
    }

    fn plan(&mut self, delay_ms: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ms + delay_ms, self.sequence), event);
    }

    /// A message on its way over the link: lost, twice, or late, so that others overtake it.
    fn transmit(&mut self, message: impl Fn() -> Event) {
        if !self.goes_wrong() {
            self.plan(5, message());
        }
        if self.goes_wrong() {
            let late = self.dice(3_000);
            self.plan(late, message());
        }
    }

    fn give(&mut self, input: Input) {
        let now = Timestamp::from_ticks(i64::try_from(self.now_ms).unwrap() * 10_000);
        let effects = self.agent.handle(input, now);
        assert!(effects.len() <= 32, "{effects:?}");
        self.carry_out(effects);
        let snapshot = self.agent.snapshot();
        assert!(snapshot.receipts_waiting <= 16 && snapshot.executions_waiting <= 8192);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ConnectGate => {
                    self.drop_gate();
                    let connection = self.gate_connection;
                    let up = if self.is_gate_alive {
                        Event::GateUp(connection)
                    } else {
                        Event::GateDown(connection)
                    };
                    self.plan(1, up);
                }
                Effect::DropGate => self.drop_gate(),
                Effect::AskGate(request) => {
                    assert!(!self.is_gate_asked, "a second request while one is unanswered");
                    self.is_gate_asked = true;
                    self.plan(1, Event::GateRequest(self.gate_connection, request));
                }
                Effect::ConnectLink => {
                    self.link += 1;
                    let link = self.link;
                    let event = if self.goes_wrong() { Event::LinkDown(link) } else { Event::LinkUp(link) };
                    self.plan(20, event);
                }
                Effect::DropLink => self.link += 1,
                Effect::Send(frame) => {
                    let link = self.link;
                    self.transmit(|| Event::ToServer(link, (*frame).clone()));
                }
                Effect::Ping => {
                    let link = self.link;
                    self.transmit(|| Event::Pong(link));
                }
                Effect::Arm(timer, delay) => {
                    self.timers.insert(timer, self.sequence + 1);
                    let delay = u64::try_from(delay.as_millis()).unwrap() + 1;
                    self.plan(delay, Event::Timer(self.agent_life, timer, self.sequence + 1));
                }
                Effect::StartInventory => {
                    assert_eq!(self.scan, None, "two scans at once");
                    self.scan = Some(self.sequence);
                    self.scans += 1;
                    self.is_scan_stopped = false;
                    self.plan(3_000, Event::InventoryEnd(self.agent_life, self.sequence));
                }
                Effect::StopInventory => self.is_scan_stopped = true,
                Effect::TellPeople(notice) => self.told.push(notice),
                Effect::Renew => panic!("there is no certificate here"),
                Effect::Log(..) => {}
            }
        }
    }

    fn drop_gate(&mut self) {
        self.gate_connection += 1;
        self.is_gate_asked = false;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Timer(life, timer, armed) => {
                if life == self.agent_life && self.timers.get(&timer) == Some(&armed) {
                    self.timers.remove(&timer);
                    self.give(Input::TimerFired(timer));
                }
            }
            Event::GateUp(connection) if connection == self.gate_connection => {
                self.give(Input::GateConnected)
            }
            Event::GateDown(connection) if connection == self.gate_connection => {
                self.drop_gate();
                self.give(Input::GateLost("refused".to_owned()));
            }
            Event::GateRequest(connection, request) if self.is_gate_alive => {
                self.gate.now = Timestamp::from_ticks(i64::try_from(self.now_ms).unwrap());
                let death = self.goes_wrong().then(|| match self.dice(3) {
                    0 => Death::Before,
                    1 => Death::AfterFence,
                    _ => Death::BeforeAnswer,
                });
                let replies = self.gate.answer(request, death);
                if death.is_some() {
                    let delay = self.dice(20_000);
                    self.kill_gate(delay);
                }
                for (delay, reply) in (1..).zip(replies) {
                    self.plan(delay, Event::GateReply(connection, reply));
                }
            }
            Event::GateReply(connection, reply) => {
                if connection == self.gate_connection {
                    self.is_gate_asked = matches!(reply, Reply::Accepted { .. });
                    self.give(Input::GateReplied(Box::new(reply)));
                } else if let Reply::Denials { denials, .. } = reply {
                    self.lost_with_agent += denials.len() as u64;
                }
            }
            Event::GateStart => {
                self.is_gate_alive = true;
                self.gate.restart();
            }
            Event::LinkUp(link) if link == self.link => {
                self.give(Input::LinkConnected(Box::default()));
            }
            Event::LinkDown(link) if link == self.link => {
                self.link += 1;
                self.give(Input::LinkLost("cut".to_owned()));
            }
            Event::ToServer(link, frame) if link == self.link => {
                for answer in self.server.take(frame, link) {
                    self.transmit(|| Event::ToAgent(link, answer.clone()));
                }
            }
            Event::ToAgent(link, frame) if link == self.link => {
                if self.agent.wants_frames() {
                    self.give(Input::FrameReceived(Box::new(frame)));
                } else {
                    self.plan(1, Event::ToAgent(link, frame));
                }
            }
            Event::Pong(link) if link == self.link => self.give(Input::ServerHeard),
            Event::InventoryEnd(life, scan) if life == self.agent_life && self.scan == Some(scan) => {
                self.scan = None;
                let end = if self.is_scan_stopped {
                    InventoryEnd::Stopped
                } else if self.gate.restricted || !self.is_gate_alive {
                    InventoryEnd::Failed("the gate takes no baseline".to_owned())
                } else {
                    self.gate.baseline = Some("b".to_owned());
                    InventoryEnd::Stored(summary())
                };
                self.give(Input::InventoryEnded(end));
            }
            Event::Deny => {
                self.denials_ahead -= 1;
                let path = format!("/{}", self.sequence);
                self.sequence += 1;
                if self.is_gate_alive && self.gate.restricted {
                    self.denied.insert(path.clone());
                    self.gate.deny(path);
                }
            }
            // From a connection, a life or a scan that is over.
            Event::GateUp(_)
            | Event::GateDown(_)
            | Event::GateRequest(..)
            | Event::LinkUp(_)
            | Event::LinkDown(_)
            | Event::ToServer(..)
            | Event::ToAgent(..)
            | Event::Pong(_)
            | Event::InventoryEnd(..) => {}
        }
    }

    fn kill_gate(&mut self, delay_ms: u64) {
        if std::mem::take(&mut self.is_gate_alive) {
            // A killed process closes its socket.
            self.plan(0, Event::GateDown(self.gate_connection));
            self.plan(delay_ms, Event::GateStart);
        }
    }

    fn cut_link(&mut self) {
        self.plan(0, Event::LinkDown(self.link));
    }

    fn kill_agent(&mut self) {
        self.lost_with_agent += self.agent.snapshot().executions_waiting as u64;
        self.agent_life += 1;
        self.link += 1;
        self.drop_gate();
        self.timers.clear();
        self.scan = None;
        self.told.clear();
        let (agent, effects) = Agent::start(identity(), self.random);
        self.agent = agent;
        self.carry_out(effects);
    }

    fn pass(&mut self, milliseconds: u64) {
        let until = self.now_ms + milliseconds;
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= until
        {
            self.now_ms = entry.key().0;
            let event = entry.remove();
            self.happen(event);
            assert!(self.events.len() <= self.denials_ahead + 2_000, "growth without end");
        }
        self.now_ms = until;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Restrict | Step::Release => {
                let desired =
                    if matches!(step, Step::Restrict) { Desired::Restricted } else { Desired::Released };
                let frame = self.server.make_order(desired);
                self.push(&frame);
            }
            Step::MakePolicy => {
                let frame = self.server.make_policy();
                self.push(&frame);
            }
            Step::Deny(count) => {
                self.denials_ahead += usize::from(*count);
                (0..u64::from(*count)).for_each(|delay| self.plan(delay, Event::Deny));
            }
            Step::CutLink => self.cut_link(),
            Step::KillAgent => self.kill_agent(),
            Step::KillGate(delay) => self.kill_gate(u64::from(*delay)),
            Step::ChangePackages => self.give(Input::PackagesChanged),
            Step::Chaos(percent) => self.chaos = *percent,
            Step::Wait(milliseconds) => self.pass(u64::from(*milliseconds)),
        }
        self.pass(1);
    }

    /// A connected machine hears at once.
    fn push(&mut self, frame: &FromServer) {
        if self.agent.snapshot().link == LinkState::Up {
            let link = self.link;
            self.transmit(|| Event::ToAgent(link, frame.clone()));
        }
    }

    fn check_end(&self) {
        let snapshot = self.agent.snapshot();
        let last_order = (self.server.generation, self.server.desired == Desired::Restricted);
        assert_eq!((self.gate.generation(), self.gate.restricted), last_order);
        let reported = self.server.reported.as_ref().unwrap();
        assert_eq!((reported.generation, reported.restricted), last_order, "the report");
        if self.server.generation > 0 {
            assert_eq!(self.server.outcomes.get(&self.server.generation), Some(&Outcome::Enforced));
        }
        // No older order after a newer one, and one order is one state however often it was carried out.
        for pair in self.gate.applied.windows(2) {
            assert!(pair[0].0 < pair[1].0 || pair[0] == pair[1], "{:?}", self.gate.applied);
        }
        assert_eq!((snapshot.link, snapshot.is_gate_answering), (LinkState::Up, true));
        assert_eq!((snapshot.receipts_waiting, snapshot.executions_waiting), (0, 0));
        assert!(self.gate.restricted || self.gate.baseline.is_some());
        // Nobody is told the same thing twice.
        assert!(self.told.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", self.told);
        assert!(self.server.events.is_subset(&self.denied));
        let counted = self.server.dropped.values().sum::<u64>() + self.gate.lost + self.lost_with_agent;
        let (arrived, tried) = (self.server.events.len() as u64, self.denied.len() as u64);
        assert!(arrived + counted >= tried, "{tried} tried, {arrived} arrived, {counted} counted as lost");
    }
}

fn summary() -> InventorySummary {
    InventorySummary {
        complete: true,
        files_done: 1,
        files_total: 1,
        vouched: 1,
        modified: 0,
        unreadable: 0,
        baseline: Some("b".to_owned()),
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Restrict),
        4 => Just(Step::Release),
        2 => Just(Step::MakePolicy),
        3 => (1..40_u16).prop_map(Step::Deny),
        1 => (500..3_000_u16).prop_map(Step::Deny),
        3 => Just(Step::CutLink),
        2 => Just(Step::KillAgent),
        2 => (0..60_000_u32).prop_map(Step::KillGate),
        1 => Just(Step::ChangePackages),
        2 => (0..40_u8).prop_map(Step::Chaos),
        6 => (0..500_u32).prop_map(Step::Wait),
        3 => (0..100_000_u32).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_becomes_what_the_last_order_says(seed: u64, steps in prop::collection::vec(any_step(), 1..40)) {
        let mut world = World::new(seed);
        for step in &steps {
            world.step(step);
        }
        // The storm is over, and nothing else happens.
        world.chaos = 0;
        world.pass(200_000);
        world.cut_link();
        world.pass(600_000);
        world.check_end();
    }
}

/// Without disturbance an order takes one round trip through the gate, and everything is told once.
#[test]
fn a_quiet_day() {
    let mut world = World::new(1);
    world.pass(10_000);
    for (desired, step) in [(true, Step::Restrict), (false, Step::Release), (true, Step::Restrict)] {
        world.step(&step);
        world.pass(50);
        assert_eq!(world.gate.restricted, desired);
        assert_eq!(world.server.outcomes.get(&world.server.generation), Some(&Outcome::Enforced));
        assert_eq!(world.server.reported.as_ref().unwrap().restricted, desired);
    }
    assert_eq!(world.told, [Notice::Restricted, Notice::Released, Notice::Restricted]);
    assert_eq!(world.gate.applied.len(), 3);
    assert_eq!(world.scans, 1);
    assert!(world.gate.rejected.is_empty());
    world.step(&Step::Deny(300));
    world.pass(10_000);
    assert_eq!(world.server.events.len(), 300);
    world.check_end();
}

/// An order that comes right after enrollment waits for the packages, so that the login shell still runs.
#[test]
fn the_first_restriction_waits_for_the_baseline() {
    let mut world = World::new(1);
    world.pass(500);
    world.step(&Step::Restrict);
    world.pass(1_000);
    assert!(!world.gate.restricted && world.gate.baseline.is_none());
    world.pass(2_000);
    assert!(world.gate.restricted && world.gate.baseline.is_some());
    world.pass(Duration::from_secs(60).as_millis().try_into().unwrap());
    world.check_end();
}

/// Whenever the gate is killed while it gets a policy and the order that needs it, it gets both again.
#[test]
fn a_gate_that_restarts_between_a_policy_and_its_order_loses_neither() {
    for wait in 0..16 {
        let mut world = World::new(1);
        world.pass(10_000);
        world.step(&Step::MakePolicy);
        world.step(&Step::Restrict);
        world.pass(wait);
        world.step(&Step::KillGate(500));
        world.pass(20_000);
        assert!(world.gate.restricted, "killed after {wait} ms");
        assert!(world.gate.rejected.is_empty(), "killed after {wait} ms: {:?}", world.gate.rejected);
        world.pass(200_000);
        world.check_end();
    }
}
