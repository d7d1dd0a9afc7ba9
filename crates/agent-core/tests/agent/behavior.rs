//! Single rules, one table each.

use std::time::Duration;

use agent_core::{Agent, Effect, Input, InventoryEnd, LinkState, Notice, SystemFacts, Timer, Validity};
use agent_protocol::{FromAgent, FromServer, Interface, Limited as _, PROTOCOL_VERSION, Welcome};
use domain::restriction::Desired;
use domain::time::Timestamp;
use gate_protocol::{BreakGlassStatus, Reply, Request, Status};

use crate::gate::Gate;
use crate::server::{Server, order};
use crate::{identity, order_key};

/// An agent whose gate answers, and whose server has welcomed it; the effects in short.
struct Bench {
    agent: Agent,
    now: Timestamp,
}

impl Bench {
    fn new() -> Self {
        let (agent, effects) = Agent::start(identity(), 1);
        assert_eq!(effects, [Effect::ConnectGate]);
        Self { agent, now: Timestamp::from_unix_seconds(1_000_000) }
    }

    /// Connected to a gate that says this.
    fn with_gate(status: &Status) -> Self {
        let mut bench = Self::new();
        assert!(bench.gate_connects(status).contains(&"connect link".to_owned()));
        bench
    }

    /// The gate is connected, says this and has nothing else to say; what came of its status.
    fn gate_connects(&mut self, status: &Status) -> Vec<String> {
        assert_eq!(self.give(Input::GateConnected), ["ask status"]);
        let mut shown = self.give(said(status));
        assert_eq!(shown.pop().unwrap(), "ask denials");
        assert_eq!(self.give(replied(no_denials())), [""; 0]);
        shown
    }

    fn linked(status: &Status) -> Self {
        let mut bench = Self::with_gate(status);
        assert_eq!(bench.give(Input::LinkConnected(Box::default())), ["send hello"]);
        let shown = bench.give(frame(welcome()));
        assert!(shown.contains(&"ask status".to_owned()), "{shown:?}");
        bench.give(said(status));
        assert_eq!(bench.agent.snapshot().link, LinkState::Up);
        bench
    }

    fn give(&mut self, input: Input) -> Vec<String> {
        self.agent.handle(input, self.now).iter().filter_map(shown).collect()
    }
}

/// An effect in short; timers of housekeeping and the log are left out.
fn shown(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::AskGate(request) => match request {
            Request::Status => "ask status".to_owned(),
            Request::StorePolicy { .. } => "ask policy".to_owned(),
            Request::Apply { .. } => "ask apply".to_owned(),
            Request::LastReceipt => "ask receipt".to_owned(),
            Request::StoreBreakGlass { envelope } => format!("ask codes {envelope}"),
            Request::Denials => "ask denials".to_owned(),
            other => format!("{other:?}"),
        },
        Effect::ConnectLink => "connect link".to_owned(),
        Effect::DropLink => "drop link".to_owned(),
        Effect::ConnectGate => "connect gate".to_owned(),
        Effect::DropGate => "drop gate".to_owned(),
        Effect::Send(frame) => {
            frame.check().unwrap();
            match frame.as_ref() {
                FromAgent::Hello(_) => "send hello".to_owned(),
                FromAgent::Heartbeat(beat) => format!("send heartbeat {}", beat.restriction.generation),
                FromAgent::Accepted { generation } => format!("send accepted {generation}"),
                FromAgent::Receipt { .. } => "send receipt".to_owned(),
                FromAgent::Executions { batch, .. } => format!("send batch {batch}"),
                FromAgent::Inventory(_) => "send inventory".to_owned(),
                FromAgent::Preview(_) => "send preview".to_owned(),
            }
        }
        Effect::StartInventory => "start inventory".to_owned(),
        Effect::StopInventory => "stop inventory".to_owned(),
        Effect::TellPeople(Notice::Restricted) => "tell restricted".to_owned(),
        Effect::TellPeople(Notice::Released) => "tell released".to_owned(),
        Effect::Renew => "renew".to_owned(),
        Effect::Ping => "ping".to_owned(),
        Effect::Arm(..) | Effect::Log(..) => return None,
    })
}

fn status() -> Status {
    let mut gate = Gate::new();
    gate.baseline = Some("b".to_owned());
    gate.status()
}

fn said(status: &Status) -> Input {
    Input::GateReplied(Box::new(Reply::Status(Box::new(status.clone()))))
}

fn replied(reply: Reply) -> Input {
    Input::GateReplied(Box::new(reply))
}

fn no_denials() -> Reply {
    Reply::Denials { denials: Vec::new(), dropped: 0 }
}

fn frame(frame: FromServer) -> Input {
    Input::FrameReceived(Box::new(frame))
}

fn welcome() -> FromServer {
    let now = Timestamp::from_unix_seconds(1_000_000).ticks();
    FromServer::Welcome(Welcome {
        protocol: PROTOCOL_VERSION,
        now,
        heartbeat_seconds: 60,
        reconnect_seconds_max: 10,
    })
}

fn release(generation: u64) -> Input {
    frame(FromServer::Order { envelope: order(generation, Desired::Released, None) })
}

/// The gate's receipt of a release.
fn receipt(generation: u64) -> Reply {
    let envelope = order(generation, Desired::Released, None);
    Gate::new().answer(Request::Apply { envelope }, None).pop().unwrap()
}

#[test]
fn an_order_goes_through_the_gate_and_the_answers_to_the_server() {
    let mut bench = Bench::linked(&status());
    assert_eq!(bench.give(release(1)), ["ask apply"]);
    assert_eq!(bench.give(replied(Reply::Accepted { generation: 1 })), ["send accepted 1"]);
    assert_eq!(bench.give(replied(receipt(1))), ["send receipt", "ask status"]);
    let status = Status { generation: 1, store_epoch: 1, ..status() };
    assert_eq!(bench.give(said(&status)), ["send heartbeat 1", "ask denials"]);
    bench.give(replied(no_denials()));
    assert_eq!(bench.agent.snapshot().receipts_waiting, 1);
    // The heartbeat repeats what is not acknowledged.
    assert_eq!(bench.give(Input::TimerFired(Timer::Heartbeat)), ["ping", "send receipt", "ask status"]);
    bench.give(frame(FromServer::ReceiptStored { generation: 2 }));
    assert_eq!(bench.agent.snapshot().receipts_waiting, 1);
    bench.give(frame(FromServer::ReceiptStored { generation: 1 }));
    assert_eq!(bench.agent.snapshot().receipts_waiting, 0);
}

#[test]
fn a_restriction_that_ends_by_itself_is_noticed_and_reported() {
    let end = Timestamp::from_unix_seconds(1_000_010);
    let restricted = Status { restricted: true, ends_at: Some(end.ticks()), ..status() };
    let mut bench = Bench::linked(&restricted);
    bench.now = Timestamp::from_unix_seconds(1_000_009);
    assert_eq!(bench.give(Input::TimerFired(Timer::Denials)), ["ask denials"]);
    bench.give(replied(no_denials()));
    // The gate goes by another clock: it is asked until it says so.
    for seconds in [10, 11] {
        bench.now = Timestamp::from_unix_seconds(1_000_000 + seconds);
        assert_eq!(bench.give(Input::TimerFired(Timer::Denials)), ["ask status"]);
        assert_eq!(bench.give(said(&restricted)), ["ask denials"]);
        bench.give(replied(no_denials()));
    }
    assert_eq!(bench.give(Input::TimerFired(Timer::Denials)), ["ask status"]);
    let released = Status { restricted: false, ends_at: None, ..restricted };
    let noticed = ["tell released", "send heartbeat 0", "start inventory", "ask denials"];
    assert_eq!(bench.give(said(&released)), noticed);
    bench.give(replied(no_denials()));
    assert_eq!(bench.give(Input::TimerFired(Timer::Denials)), ["ask denials"]);
}

#[test]
fn of_several_orders_only_the_newest_is_carried_out() {
    let mut bench = Bench::linked(&status());
    assert_eq!(bench.give(release(3)), ["ask apply"]);
    for generation in [2, 3, 6, 4, 5, 6] {
        assert_eq!(bench.give(release(generation)), [""; 0]);
    }
    let effects = bench.agent.handle(replied(receipt(3)), bench.now);
    let applied = effects.iter().find_map(|effect| match effect {
        Effect::AskGate(Request::Apply { envelope }) => Some(envelope.clone()),
        _ => None,
    });
    assert_eq!(applied, Some(order(6, Desired::Released, None)));
}

#[test]
fn an_unsigned_order_never_reaches_the_gate() {
    let mut bench = Bench::linked(&status());
    let good = order(1, Desired::Released, None);
    for bad in ["", "{}", &good.replacen("sig\":\"", "sig\":\"A", 1), &good[..good.len() - 2]] {
        assert_eq!(bench.give(frame(FromServer::Order { envelope: bad.to_owned() })), [""; 0]);
    }
}

#[test]
fn a_policy_is_kept_before_the_order_that_needs_it_whichever_comes_first() {
    let mut server = Server::new();
    let policy = server.make_policy();
    let restrict = server.make_order(Desired::Restricted);
    let mut bench = Bench::linked(&status());
    assert_eq!(bench.give(frame(restrict.clone())), [""; 0], "the order waits");
    assert!(bench.agent.wants_frames());
    assert_eq!(bench.give(frame(policy.clone())), ["ask policy"]);
    assert_eq!(bench.give(replied(Reply::Done)), ["ask apply"]);

    let mut bench = Bench::linked(&status());
    bench.give(Input::TimerFired(Timer::Heartbeat));
    // The gate is busy: no frame is read before the policy is with it.
    bench.give(frame(policy));
    assert!(!bench.agent.wants_frames());
    assert_eq!(bench.give(said(&status())).last().unwrap(), "ask policy");
    assert!(!bench.agent.wants_frames());
    bench.give(replied(Reply::Done));
    assert!(bench.agent.wants_frames());

    // A policy that never comes: the gate is to say so.
    let mut bench = Bench::linked(&status());
    bench.give(frame(restrict));
    assert_eq!(bench.give(Input::TimerFired(Timer::OrderWait)), ["ask apply"]);
}

#[test]
fn an_order_that_the_gate_took_to_its_grave_is_asked_again() {
    let mut bench = Bench::linked(&status());
    bench.give(release(1));
    assert_eq!(bench.give(Input::GateLost("killed".to_owned())), [""; 0]);
    assert_eq!(bench.give(Input::TimerFired(Timer::GateConnect)), ["connect gate"]);
    assert_eq!(bench.give(Input::GateConnected), ["ask status"]);
    // It had become durable: its receipt is asked for, and the order again should there be none.
    let status = Status { generation: 1, store_epoch: 1, ..status() };
    assert_eq!(bench.give(said(&status)), ["ask receipt"]);
    assert_eq!(bench.give(replied(Reply::Refused { reason: "none".to_owned() })), ["ask apply"]);
}

#[test]
fn a_policy_that_the_gate_took_to_its_grave_is_stored_again_before_the_order_that_needs_it() {
    for answer in [Reply::Done, Reply::Refused { reason: "full".to_owned() }] {
        let mut server = Server::new();
        let mut bench = Bench::linked(&status());
        assert_eq!(bench.give(frame(server.make_policy())), ["ask policy"]);
        assert_eq!(bench.give(Input::GateLost("killed".to_owned())), [""; 0]);
        assert!(!bench.agent.wants_frames());
        assert_eq!(bench.give(Input::GateConnected), ["ask status"]);
        assert_eq!(bench.give(said(&status())), ["ask policy"]);
        // Once the gate has answered, whatever that is, it is not asked again.
        let is_kept = answer == Reply::Done;
        assert!(!bench.give(replied(answer)).contains(&"ask policy".to_owned()));
        assert!(bench.agent.wants_frames());
        bench.give(replied(no_denials()));
        let order = bench.give(frame(server.make_order(Desired::Restricted)));
        assert_eq!(order == ["ask apply"], is_kept);
    }
}

#[test]
fn break_glass_codes_go_to_the_gate_and_what_it_holds_to_the_server() {
    let codes = |envelope: &str| frame(FromServer::BreakGlass { envelope: envelope.to_owned() });
    // A gate that knows of none is not asked.
    assert_eq!(Bench::linked(&status()).give(codes("1")), [""; 0]);
    let glass = BreakGlassStatus {
        store_epoch: 1,
        incarnation: 1,
        first: 0,
        codes_left: 0,
        lifted_at: None,
        log: Some("log".to_owned()),
    };
    let status = Status { break_glass: Some(glass), ..status() };
    let mut bench = Bench::linked(&status);
    assert_eq!(bench.give(codes("1")), ["ask codes 1"]);
    // The last one counts; a gate that goes away is asked again.
    bench.give(codes("2"));
    bench.give(Input::GateLost("killed".to_owned()));
    bench.give(Input::GateConnected);
    assert_eq!(bench.give(said(&status)), ["ask codes 2"]);
    assert_eq!(bench.give(replied(Reply::Done)), ["ask status"]);
    let beats = bench.agent.handle(said(&status), bench.now);
    let reported = beats.iter().find_map(|effect| match effect {
        Effect::Send(sent) => match sent.as_ref() {
            FromAgent::Heartbeat(beat) => beat.restriction.break_glass.clone(),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(reported.unwrap().log.as_deref(), Some("log"));
    // A refusal is the end of it.
    bench.give(replied(no_denials()));
    assert_eq!(bench.give(codes("3")), ["ask codes 3"]);
    let refused = bench.give(replied(Reply::Refused { reason: "older".to_owned() }));
    assert!(!refused.contains(&"ask codes 3".to_owned()));
}

#[test]
fn an_order_that_is_put_back_does_not_wait_forever() {
    let mut server = Server::new();
    let policy = server.make_policy();
    let mut bench = Bench::linked(&status());
    bench.give(frame(policy));
    bench.give(replied(Reply::Done));
    assert_eq!(bench.give(frame(server.make_order(Desired::Restricted))), ["ask apply"]);
    let lost = bench.agent.handle(Input::GateLost("killed".to_owned()), bench.now);
    assert!(lost.iter().any(|effect| matches!(effect, Effect::Arm(Timer::OrderWait, _))), "{lost:?}");
    // The gate comes back without the policy.
    assert_eq!(bench.give(Input::GateConnected), ["ask status"]);
    assert_eq!(bench.give(said(&status())), ["ask denials"]);
    assert_eq!(bench.give(replied(no_denials())), [""; 0]);
    assert_eq!(bench.give(Input::TimerFired(Timer::OrderWait)), ["ask apply"]);
}

#[test]
fn the_receipt_of_an_earlier_life_is_sent_once() {
    let status = Status { generation: 4, store_epoch: 1, ..status() };
    let mut bench = Bench::new();
    bench.give(Input::GateConnected);
    assert_eq!(bench.give(said(&status)), ["connect link", "start inventory", "ask receipt"]);
    assert_eq!(bench.give(replied(receipt(4))), ["ask denials"]);
    bench.give(replied(no_denials()));
    bench.give(Input::LinkConnected(Box::default()));
    assert_eq!(bench.give(frame(welcome())), ["send receipt", "ask status"]);
    assert_eq!(bench.give(said(&status)), ["send heartbeat 4"]);
}

#[test]
fn a_gate_that_is_away_takes_the_machine_off_the_server() {
    let mut bench = Bench::linked(&status());
    bench.give(Input::GateLost("killed".to_owned()));
    assert_eq!(bench.give(Input::TimerFired(Timer::GateAway)), ["drop link"]);
    assert_eq!(bench.agent.snapshot().link, LinkState::AwaitingGate);
    assert_eq!(bench.gate_connects(&status()), ["connect link"]);
    // One that is back in time does not.
    let mut bench = Bench::linked(&status());
    bench.give(Input::GateLost("killed".to_owned()));
    bench.gate_connects(&status());
    assert_eq!(bench.give(Input::TimerFired(Timer::GateAway)), [""; 0]);
}

#[test]
fn a_gate_that_does_not_answer_is_left() {
    let mut bench = Bench::linked(&status());
    assert_eq!(bench.give(Input::TimerFired(Timer::GateReply)), [""; 0], "nothing was asked");
    bench.give(Input::TimerFired(Timer::Heartbeat));
    assert_eq!(bench.give(Input::TimerFired(Timer::GateReply)), ["drop gate"]);
    // Nor is one believed that answers what was not asked.
    let mut bench = Bench::linked(&status());
    bench.give(Input::TimerFired(Timer::Heartbeat));
    assert_eq!(bench.give(replied(Reply::Done)), ["drop gate"]);
}

#[test]
fn a_silent_server_is_left() {
    let mut bench = Bench::linked(&status());
    let shown = bench.give(Input::TimerFired(Timer::Heartbeat));
    assert_eq!(shown, ["ping", "ask status"]);
    bench.give(said(&status()));
    assert_eq!(bench.give(Input::TimerFired(Timer::Heartbeat)), ["drop link"]);
    let mut bench = Bench::linked(&status());
    for _ in 0..10 {
        assert_eq!(bench.give(Input::TimerFired(Timer::Heartbeat)), ["ping", "ask status"]);
        assert_eq!(bench.give(said(&status())), ["send heartbeat 0"]);
        bench.give(Input::ServerHeard);
    }
    // And one that never welcomes.
    let mut bench = Bench::with_gate(&status());
    bench.give(Input::LinkConnected(Box::default()));
    assert_eq!(bench.give(Input::TimerFired(Timer::LinkSetup)), ["drop link"]);
}

#[test]
fn a_server_of_an_older_protocol_and_one_that_says_goodbye_are_left() {
    let older =
        FromServer::Welcome(Welcome { protocol: 0, now: 0, heartbeat_seconds: 1, reconnect_seconds_max: 1 });
    let mut bench = Bench::with_gate(&status());
    bench.give(Input::LinkConnected(Box::default()));
    assert_eq!(bench.give(frame(older)), ["drop link"]);
    assert_eq!(bench.agent.snapshot().link, LinkState::BackingOff);
    let mut bench = Bench::linked(&status());
    assert_eq!(bench.give(frame(FromServer::Goodbye { reason: "bye".to_owned() })), ["drop link"]);
    assert_eq!(bench.give(Input::TimerFired(Timer::LinkConnect)), ["connect link"]);
}

/// The longest delay that was armed for the next attempt, over many lost connections.
fn longest_delay(welcomed: bool, beats: bool) -> Duration {
    let mut bench = Bench::with_gate(&status());
    let mut longest = Duration::ZERO;
    for _ in 0..60 {
        bench.give(Input::LinkConnected(Box::default()));
        if welcomed {
            bench.give(frame(welcome()));
            bench.give(said(&status()));
        }
        if beats {
            bench.give(Input::TimerFired(Timer::Heartbeat));
            bench.give(said(&status()));
        }
        for effect in bench.agent.handle(Input::LinkLost("cut".to_owned()), bench.now) {
            if let Effect::Arm(Timer::LinkConnect, delay) = effect {
                longest = longest.max(delay);
            }
        }
        bench.give(Input::TimerFired(Timer::LinkConnect));
    }
    longest
}

#[test]
fn the_back_off_grows_to_the_servers_cap_and_starts_anew_only_after_a_connection_that_held() {
    let seconds = Duration::from_secs;
    let never_welcomed = longest_delay(false, false);
    assert!(never_welcomed > seconds(30) && never_welcomed <= seconds(60), "{never_welcomed:?}");
    let refused_after_welcome = longest_delay(true, false);
    assert!(
        refused_after_welcome > seconds(7) && refused_after_welcome <= seconds(10),
        "{refused_after_welcome:?}"
    );
    assert!(longest_delay(true, true) <= seconds(1));
}

#[test]
fn people_are_told_of_changes_only() {
    let restricted = Status { restricted: true, ..status() };
    let mut bench = Bench::with_gate(&restricted);
    let mut told = Vec::new();
    for status in [&restricted, &status(), &status(), &restricted] {
        told.extend(bench.gate_connects(status).into_iter().filter(|shown| shown.starts_with("tell")));
    }
    assert_eq!(told, ["tell released", "tell restricted"]);
}

#[test]
fn denials_are_fetched_while_restricted_and_once_after() {
    let restricted = Status { restricted: true, ..status() };
    let none = || replied(no_denials());
    let mut bench = Bench::linked(&restricted);
    for _ in 0..3 {
        assert_eq!(bench.give(Input::TimerFired(Timer::Denials)), ["ask denials"]);
        assert_eq!(bench.give(none()), [""; 0]);
    }
    bench.give(Input::TimerFired(Timer::Heartbeat));
    let shown = bench.give(said(&status()));
    assert!(shown.contains(&"ask denials".to_owned()), "{shown:?}");
    bench.give(replied(Reply::Denials { denials: Vec::new(), dropped: 3 }));
    assert_eq!(bench.agent.snapshot().executions_dropped, 3);
    bench.give(Input::TimerFired(Timer::Denials));
    bench.give(none());
    assert!(
        !bench
            .agent
            .handle(Input::TimerFired(Timer::Batch), bench.now)
            .iter()
            .any(|effect| { matches!(effect, Effect::Arm(Timer::Denials, _)) })
    );
}

#[test]
fn the_inventory_rests_while_restricted() {
    let restricted = Status { restricted: true, ..status() };
    let mut bench = Bench::new();
    assert_eq!(bench.gate_connects(&restricted), ["connect link"]);
    assert_eq!(bench.gate_connects(&status()), ["tell released", "start inventory"]);
    assert_eq!(bench.give(Input::PackagesChanged), [""; 0], "one at a time");
    assert_eq!(bench.gate_connects(&restricted), ["tell restricted", "stop inventory"]);
    bench.give(Input::InventoryEnded(InventoryEnd::Stopped));
    bench.give(said(&restricted));
    assert_eq!(bench.gate_connects(&status()), ["tell released", "start inventory"]);
}

#[test]
fn a_scan_that_fails_is_tried_again_but_not_at_once() {
    let none = Status { baseline: None, ..status() };
    let mut bench = Bench::with_gate(&none);
    let effects =
        bench.agent.handle(Input::InventoryEnded(InventoryEnd::Failed("disk".to_owned())), bench.now);
    let pause = effects.iter().find_map(|effect| match effect {
        Effect::Arm(Timer::Inventory, pause) => Some(*pause),
        _ => None,
    });
    assert!(pause > Some(Duration::from_secs(300)), "{pause:?}");
    assert_eq!(bench.give(said(&none)), [""; 0]);
    // An order does not wait for what may never come.
    let mut server = Server::new();
    bench.give(Input::LinkConnected(Box::default()));
    bench.give(frame(welcome()));
    bench.give(said(&none));
    bench.give(frame(server.make_policy()));
    bench.give(replied(Reply::Done));
    assert_eq!(bench.give(frame(server.make_order(Desired::Restricted))), ["ask apply"]);
    assert_eq!(bench.give(Input::TimerFired(Timer::Inventory)), ["start inventory"]);
}

#[test]
fn a_wrong_clock_is_noticed() {
    let mut bench = Bench::with_gate(&status());
    bench.now = Timestamp::from_unix_seconds(1_000_600);
    bench.give(Input::LinkConnected(Box::default()));
    let effects = bench.agent.handle(frame(welcome()), bench.now);
    assert!(format!("{effects:?}").contains("600 s ahead of"), "{effects:?}");
    assert_eq!(bench.agent.snapshot().clock_ahead_ticks, Some(600 * 10_000_000));
}

#[test]
fn the_certificate_is_renewed_in_time() {
    let mut bench = Bench::linked(&status());
    let at = Timestamp::from_unix_seconds;
    let validity = Validity { not_before: at(1_000_000), not_after: at(1_000_300) };
    assert_eq!(bench.give(Input::CertificateInUse(validity)), [""; 0]);
    bench.now = at(1_000_199);
    assert_eq!(bench.give(Input::TimerFired(Timer::Renewal)), [""; 0]);
    bench.now = at(1_000_221);
    assert_eq!(bench.give(Input::TimerFired(Timer::Renewal)), ["renew"]);
    bench.give(Input::RenewalFailed("no answer".to_owned()));
    assert_eq!(bench.give(Input::TimerFired(Timer::Renewal)), ["renew"]);
}

#[test]
fn a_greeting_always_fits_its_frame() {
    let long = || "ä".repeat(5000);
    let status = Status {
        tier: Some(long()),
        tier_note: long(),
        policy: Some(long()),
        policies: vec![long(); 40],
        public_key: order_key().public_key().to_string(),
        ..status()
    };
    let mut bench = Bench::with_gate(&status);
    let interface = Interface { address: [0; 4].into(), mac: None, up: true };
    let facts = SystemFacts {
        agent_version: long(),
        computer_dns_name: long(),
        os_version: long(),
        os_build: long(),
        os_architecture: long(),
        interfaces: vec![interface; 500],
    };
    // `shown` checks the limits of each frame.
    assert_eq!(bench.give(Input::LinkConnected(Box::new(facts))), ["send hello"]);
}
