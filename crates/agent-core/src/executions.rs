//! Refused executions on their way to the server: coalesced, bounded, counted when lost, sent until acknowledged.

use std::collections::VecDeque;
use std::time::Duration;

use agent_protocol::{ExecutionEvent, FromAgent};
use gate_protocol::Denial;

use crate::agent::cut;
use crate::effect::{Effect, Timer};

/// The most memory that waiting events take, in bytes, about. What comes after is counted.
const BYTES_MAX: usize = 1024 * 1024;
/// The most events in one batch, and the most bytes of their frame, about: half of what a server accepts.
const BATCH_EVENTS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// No more than one batch in this time, whatever happens on the machine.
const PACE: Duration = Duration::from_secs(1);
/// The longest path and the longest other text of an event, in bytes: what the protocol bears.
const PATH_BYTES_MAX: usize = 16 * 1024;
const TEXT_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct Executions {
    waiting: VecDeque<ExecutionEvent>,
    waiting_bytes: usize,
    /// Lost here or in the gate, and not yet reported.
    dropped: u64,
    dropped_total: u64,
    /// The gate's own count when it was last asked.
    gate_dropped: u64,
    in_flight: Option<Batch>,
    /// The number of the last batch of this connection.
    number: u64,
    is_paced: bool,
}

#[derive(Debug)]
struct Batch {
    events: Vec<ExecutionEvent>,
    dropped: u64,
}

impl Executions {
    /// Takes what the gate refused. `gate_dropped` counts from the gate's start.
    pub(crate) fn add(&mut self, denials: Vec<Denial>, gate_dropped: u64) {
        // A lower count is that of a gate that started again.
        let lost = gate_dropped.checked_sub(self.gate_dropped).unwrap_or(gate_dropped);
        self.gate_dropped = gate_dropped;
        self.lose(lost);
        for denial in denials {
            self.add_one(event_of(denial));
        }
    }

    fn add_one(&mut self, event: ExecutionEvent) {
        if let Some(known) = self.waiting.iter_mut().find(|known| is_alike(known, &event)) {
            known.count = known.count.saturating_add(event.count);
            return;
        }
        let bytes = bytes_of(&event);
        if self.waiting_bytes + bytes > BYTES_MAX {
            return self.lose(event.count);
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(event);
    }

    fn lose(&mut self, count: u64) {
        self.dropped = self.dropped.saturating_add(count);
        self.dropped_total = self.dropped_total.saturating_add(count);
    }

    /// How many events wait, and how many executions were lost since the agent started.
    pub(crate) fn counts(&self) -> (usize, u64) {
        let in_flight = self.in_flight.as_ref().map_or(0, |batch| batch.events.len());
        (self.waiting.len() + in_flight, self.dropped_total)
    }

    /// A connection began: batches are numbered from 1, and what was not acknowledged goes first.
    pub(crate) fn connected(&mut self, effects: &mut Vec<Effect>) {
        self.number = 0;
        if self.in_flight.is_some() {
            self.number = 1;
            self.send_in_flight(effects);
        } else {
            self.send_next(effects);
        }
    }

    /// The pace allows another batch.
    pub(crate) fn paced(&mut self, is_linked: bool, effects: &mut Vec<Effect>) {
        self.is_paced = false;
        if is_linked {
            self.send_next(effects);
        }
    }

    /// Sends the next batch when there is one and none is under way.
    pub(crate) fn send_next(&mut self, effects: &mut Vec<Effect>) {
        if self.in_flight.is_some() || self.is_paced || (self.waiting.is_empty() && self.dropped == 0) {
            return;
        }
        let mut events = Vec::new();
        let mut frame_bytes = 0;
        while let Some(event) = self.waiting.front()
            && events.len() < BATCH_EVENTS_MAX
            && frame_bytes + frame_bytes_of(event) <= BATCH_BYTES_MAX
            && let Some(event) = self.waiting.pop_front()
        {
            frame_bytes += frame_bytes_of(&event);
            self.waiting_bytes -= bytes_of(&event);
            events.push(event);
        }
        self.in_flight = Some(Batch { events, dropped: std::mem::take(&mut self.dropped) });
        self.number += 1;
        self.is_paced = true;
        self.send_in_flight(effects);
        effects.push(Effect::Arm(Timer::Batch, PACE));
    }

    /// Sends the batch under way once more, should it have been lost.
    pub(crate) fn send_in_flight(&self, effects: &mut Vec<Effect>) {
        if let Some(batch) = &self.in_flight {
            effects.push(Effect::Send(Box::new(FromAgent::Executions {
                batch: self.number,
                events: batch.events.clone(),
                dropped: batch.dropped,
            })));
        }
    }

    pub(crate) fn stored(&mut self, number: u64, effects: &mut Vec<Effect>) {
        if number == self.number && self.in_flight.take().is_some() {
            self.send_next(effects);
        }
    }
}

/// Two events that one can stand for, with a count.
fn is_alike(a: &ExecutionEvent, b: &ExecutionEvent) -> bool {
    a.path == b.path
        && a.sha256 == b.sha256
        && a.parent_program == b.parent_program
        && (a.uid, &a.cause, &a.rule) == (b.uid, &b.cause, &b.rule)
        && (&a.hook, a.audited, &a.script) == (&b.hook, b.audited, &b.script)
        && (&a.cgroup, &a.policy, a.policy_revision) == (&b.cgroup, &b.policy, b.policy_revision)
}

fn texts_of(event: &ExecutionEvent) -> usize {
    let optional = |text: &Option<String>| text.as_deref().map_or(0, str::len);
    event.path.len()
        + event.parent_program.len()
        + event.cause.len()
        + optional(&event.sha256)
        + optional(&event.rule)
        + event.hook.len()
        + [&event.cgroup, &event.container, &event.interpreter, &event.script, &event.policy]
            .into_iter()
            .map(optional)
            .sum::<usize>()
}

fn bytes_of(event: &ExecutionEvent) -> usize {
    size_of::<ExecutionEvent>() + texts_of(event)
}

/// At most this much JSON: the gate's texts hold no control characters, so that none doubles more than once.
fn frame_bytes_of(event: &ExecutionEvent) -> usize {
    768 + 2 * texts_of(event)
}

fn event_of(denial: Denial) -> ExecutionEvent {
    let path = |text: String| cut(text, PATH_BYTES_MAX);
    ExecutionEvent {
        at: denial.at,
        hook: cut(denial.hook, TEXT_BYTES_MAX),
        path: cut(denial.path, PATH_BYTES_MAX),
        sha256: denial.sha256.map(|text| cut(text, TEXT_BYTES_MAX)),
        cause: cut(denial.cause, TEXT_BYTES_MAX),
        rule: denial.rule.map(|text| cut(text, 2 * TEXT_BYTES_MAX)),
        pid: denial.pid,
        ppid: denial.ppid,
        uid: denial.uid,
        parent_program: cut(denial.parent_program, PATH_BYTES_MAX),
        cgroup: denial.cgroup.map(path),
        container: denial.container.map(|text| cut(text, TEXT_BYTES_MAX)),
        interpreter: denial.interpreter.map(path),
        script: denial.script.map(path),
        policy: denial.policy.map(|text| cut(text, TEXT_BYTES_MAX)),
        policy_revision: denial.policy_revision,
        audited: denial.audited,
        count: denial.count.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::{FROM_AGENT_BYTES_MAX, Limited as _};

    fn denial(path: &str, count: u64) -> Denial {
        Denial {
            at: 1,
            path: path.to_owned(),
            sha256: None,
            cause: "unlisted".to_owned(),
            rule: None,
            pid: 7,
            ppid: 1,
            uid: Some(0),
            parent_program: "/bin/sh".to_owned(),
            count,
            ..Denial::default()
        }
    }

    fn sent(effects: &[Effect]) -> Vec<(u64, u64, u64)> {
        let batch = |effect: &Effect| {
            let Effect::Send(frame) = effect else { return None };
            let FromAgent::Executions { batch, events, dropped } = frame.as_ref() else {
                panic!("{frame:?}")
            };
            Some((*batch, events.iter().map(|event| event.count).sum(), *dropped))
        };
        effects.iter().filter_map(batch).collect()
    }

    #[test]
    fn alike_events_become_one_and_batches_keep_their_pace() {
        let mut executions = Executions::default();
        let mut effects = Vec::new();
        executions.add(vec![denial("/a", 2), denial("/b", 1), denial("/a", 3)], 0);
        assert_eq!(executions.counts(), (2, 0));
        executions.connected(&mut effects);
        assert_eq!(sent(&effects), [(1, 6, 0)]);
        effects.clear();
        executions.add(vec![denial("/a", 1)], 0);
        executions.send_next(&mut effects);
        executions.stored(2, &mut effects);
        executions.stored(1, &mut effects);
        assert_eq!(sent(&effects), [], "not within the pace");
        executions.paced(true, &mut effects);
        assert_eq!(sent(&effects), [(2, 1, 0)]);
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_on_the_next_connection() {
        let mut executions = Executions::default();
        let mut effects = Vec::new();
        executions.add(vec![denial("/a", 1)], 0);
        executions.connected(&mut effects);
        executions.add(vec![denial("/b", 1)], 0);
        effects.clear();
        executions.paced(false, &mut effects);
        executions.connected(&mut effects);
        assert_eq!(sent(&effects), [(1, 1, 0)]);
        effects.clear();
        executions.stored(1, &mut effects);
        executions.stored(1, &mut effects);
        assert_eq!(sent(&effects), [(2, 1, 0)]);
    }

    #[test]
    fn what_is_too_much_is_counted_and_reported() {
        let mut executions = Executions::default();
        for i in 0..100_000 {
            executions.add(vec![denial(&format!("/{i}"), 1)], 5);
        }
        let (waiting, dropped) = executions.counts();
        assert_eq!(waiting as u64 + dropped, 100_005);
        assert!(executions.waiting_bytes <= BYTES_MAX && waiting > 3_000, "{waiting}");
        let (mut effects, mut reported) = (Vec::new(), 0);
        executions.connected(&mut effects);
        for number in 1.. {
            let batches = sent(&effects);
            let [batch] = batches.as_slice() else { break };
            reported += batch.1 + batch.2;
            effects.clear();
            executions.stored(number, &mut effects);
            executions.paced(true, &mut effects);
        }
        assert_eq!(reported, 100_005);
        // The gate started again: its count did, too.
        executions.add(Vec::new(), 2);
        assert_eq!(executions.counts(), (0, dropped + 2));
    }

    #[test]
    fn hostile_texts_never_make_a_frame_that_the_server_refuses() {
        let mut executions = Executions::default();
        for i in 0..64 {
            let long = |c: char| format!("{i}{}", c.to_string().repeat(40_000));
            executions.add(
                vec![Denial {
                    sha256: Some(long('x')),
                    cause: long('y'),
                    rule: Some(long('ü')),
                    parent_program: long('\\'),
                    hook: long('h'),
                    cgroup: Some(long('"')),
                    container: Some(long('c')),
                    interpreter: Some(long('\\')),
                    script: Some(long('"')),
                    policy: Some(long('p')),
                    policy_revision: Some(u64::MAX),
                    ..denial(&long('"'), 0)
                }],
                0,
            );
        }
        let mut effects = Vec::new();
        executions.connected(&mut effects);
        let Effect::Send(frame) = &effects[0] else { panic!("{effects:?}") };
        frame.check().unwrap();
        assert!(agent_protocol::encode(frame).len() <= FROM_AGENT_BYTES_MAX);
    }
}
