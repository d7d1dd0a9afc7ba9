//! The connection to the server: its states, heartbeat and back-off.

use std::time::Duration;

use agent_protocol::{
    BreakGlassReport, FromAgent, Heartbeat, Hello, PROTOCOL_VERSION, RestrictionReport, Welcome,
};
use gate_protocol::Status;
use orders::BreakGlassLog;

use crate::agent::cut;
use crate::effect::{Effect, Timer};
use crate::input::SystemFacts;
use crate::random::{Backoff, Random};

/// From the first packet to the server's welcome.
const SETUP_MAX: Duration = Duration::from_secs(30);
/// The back-off's base; and its cap until a server says another.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(60);
/// What a server may ask for: never busy, never silent for a day.
const SECONDS: std::ops::RangeInclusive<u32> = 1..=3600;
/// What the protocol bears, in bytes and items.
const NAME_BYTES_MAX: usize = 256;
const NOTE_BYTES_MAX: usize = 1024;
const INTERFACES_MAX: usize = 64;
const POLICIES_MAX: usize = 64;

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// There is nothing to say until the gate answers.
    AwaitingGate,
    /// The last attempt failed, or the connection was lost; the next attempt waits.
    BackingOff,
    /// Being opened.
    Connecting,
    /// Open; the server has not answered yet.
    Greeting,
    /// The server knows the machine.
    Up,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    heartbeat: Duration,
    backoff: Backoff,
    /// Whether the server gave a sign of life since the last heartbeat.
    is_heard: bool,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            state: LinkState::AwaitingGate,
            heartbeat: Duration::from_secs(60),
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP),
            is_heard: false,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// Whether there is a connection, or one is being opened.
    pub(crate) fn is_open(&self) -> bool {
        match self.state {
            LinkState::AwaitingGate | LinkState::BackingOff => false,
            LinkState::Connecting | LinkState::Greeting | LinkState::Up => true,
        }
    }

    pub(crate) fn heard(&mut self) {
        self.is_heard = true;
    }

    pub(crate) fn connect(&mut self, effects: &mut Vec<Effect>) {
        self.state = LinkState::Connecting;
        effects.push(Effect::ConnectLink);
        effects.push(Effect::Arm(Timer::LinkSetup, SETUP_MAX));
    }

    pub(crate) fn greet(&mut self, facts: SystemFacts, status: &Status, effects: &mut Vec<Effect>) {
        self.state = LinkState::Greeting;
        effects.push(Effect::Send(Box::new(FromAgent::Hello(Box::new(hello(facts, status))))));
    }

    pub(crate) fn welcomed(&mut self, welcome: &Welcome, random: &mut Random, effects: &mut Vec<Effect>) {
        let seconds =
            |seconds: u32| Duration::from_secs(seconds.clamp(*SECONDS.start(), *SECONDS.end()).into());
        self.state = LinkState::Up;
        self.heartbeat = seconds(welcome.heartbeat_seconds);
        self.backoff.set_cap(seconds(welcome.reconnect_seconds_max));
        self.is_heard = true;
        effects.push(Effect::Arm(Timer::Heartbeat, random.around(self.heartbeat)));
    }

    /// A connection that held until here begins its back-off anew, should it be lost: one that is refused right after
    /// the welcome does not. Answers whether the server still gives signs of life.
    pub(crate) fn beat(&mut self, random: &mut Random, effects: &mut Vec<Effect>) -> bool {
        if !std::mem::take(&mut self.is_heard) {
            return false;
        }
        self.backoff.reset();
        effects.push(Effect::Ping);
        effects.push(Effect::Arm(Timer::Heartbeat, random.around(self.heartbeat)));
        true
    }

    pub(crate) fn back_off(&mut self, random: &mut Random, effects: &mut Vec<Effect>) {
        self.state = LinkState::BackingOff;
        effects.push(Effect::Arm(Timer::LinkConnect, self.backoff.next(random)));
    }
}

/// A heartbeat with what the gate says.
pub(crate) fn heartbeat(status: &Status) -> Effect {
    Effect::Send(Box::new(FromAgent::Heartbeat(Heartbeat { restriction: report(status) })))
}

fn report(status: &Status) -> RestrictionReport {
    RestrictionReport {
        incarnation: status.incarnation,
        store_epoch: status.store_epoch,
        generation: status.generation,
        restricted: status.restricted,
        policy: status.policy.clone().map(|text| cut(text, NAME_BYTES_MAX / 2)),
        break_glass: status.break_glass.clone().map(|glass| BreakGlassReport {
            store_epoch: glass.store_epoch,
            incarnation: glass.incarnation,
            first: glass.first,
            // A cut log would be none.
            log: glass.log.filter(|log| log.len() <= BreakGlassLog::BYTES_MAX),
        }),
    }
}

fn hello(facts: SystemFacts, status: &Status) -> Hello {
    let name = |text: String| cut(text, NAME_BYTES_MAX);
    let mut interfaces = facts.interfaces;
    interfaces.truncate(INTERFACES_MAX);
    Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: name(facts.agent_version),
        computer_dns_name: name(facts.computer_dns_name),
        os_platform: "Linux".to_owned(),
        os_version: name(facts.os_version),
        os_build: name(facts.os_build),
        os_architecture: name(facts.os_architecture),
        interfaces,
        tier: status.tier.clone().map(name),
        tier_note: cut(status.tier_note.clone(), NOTE_BYTES_MAX),
        restriction: report(status),
        policies: status.policies.iter().take(POLICIES_MAX).map(|text| cut(text.clone(), 64)).collect(),
    }
}
