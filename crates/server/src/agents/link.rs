//! One machine's connection: a WebSocket over mutual TLS.
//!
//! Owns the order of frames, the pace that a machine is allowed, and the ends of a connection. An order goes out ahead
//! of anything else, and never before the policy that it needs. Deliberately keeps no state of the machine: everything
//! that matters is read from `control-plane` when the hub says that it changed.

mod convert;
mod pace;

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use agent_protocol::{
    FROM_AGENT_BYTES_MAX, FromAgent, FromServer, Hello, PROTOCOL_VERSION, PreviewReport, PreviewState,
    RestrictionReport, Welcome, decode, encode,
};
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use control_plane::{ControlPlane, ReportedBreakGlass};
use domain::digest::Sha256Digest;
use domain::machine::MachineId;
use tokio::time::{Instant, MissedTickBehavior};

use super::hub::{Place, Signals};
use crate::state::{AppState, now};
use crate::tls::Peer;
use pace::Pace;

/// The library's default of 128 KiB would be most of what an idle connection costs.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Time for the first frame.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for a machine to take one frame.
const SEND_TIME_MAX: Duration = Duration::from_secs(30);
/// How often the machine is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(25);
/// How often it is looked whether a machine is to hold other break-glass codes.
const BREAK_GLASS_EVERY: Duration = Duration::from_secs(60 * 60);
/// How long a machine may say nothing, not even the answer to a ping.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The first version of the protocol that has impact previews.
const PREVIEWS_SINCE: u32 = 4;

/// Takes a machine's connection.
pub(super) async fn open(
    State(state): State<AppState>,
    Extension(peer): Extension<Peer>,
    upgrade: WebSocketUpgrade,
) -> Response {
    // TLS lets nobody without a certificate onto this listener.
    let Some(machine) = peer.machine else { return StatusCode::FORBIDDEN.into_response() };
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(FROM_AGENT_BYTES_MAX)
        .max_frame_size(FROM_AGENT_BYTES_MAX)
        .on_upgrade(move |socket| run(socket, state, machine, peer.address.ip()))
}

/// Why a connection ends.
enum End {
    /// The machine is gone, or is to be dropped without a word.
    Gone(String),
    /// The machine is told why.
    Goodbye(String),
}

async fn run(socket: WebSocket, state: AppState, machine: MachineId, remote: IpAddr) {
    let mut line = Line { socket, pace: Pace::new(Instant::now()) };
    // Given up after the last word, so that a server that stops waits for it.
    let mut place = None;
    let Err(end) = serve(&mut line, &mut place, &state, machine, remote).await;
    match end {
        End::Gone(why) => tracing::info!(%machine, why, "machine disconnected"),
        End::Goodbye(reason) => {
            tracing::info!(%machine, reason, "machine sent away");
            line.close(reason).await;
        }
    }
}

async fn serve(
    line: &mut Line,
    place: &mut Option<Place>,
    state: &AppState,
    machine: MachineId,
    remote: IpAddr,
) -> Result<Infallible, End> {
    let hello = match tokio::time::timeout(HELLO_TIME_MAX, line.receive()).await {
        Ok(frame) => frame?,
        Err(_) => return Err(End::Gone("no Hello in time".to_owned())),
    };
    let Some(FromAgent::Hello(hello)) = hello else {
        return Err(End::Goodbye("the first frame is to be Hello".to_owned()));
    };
    require_version(&hello)?;
    let (reported, held) = (convert::reported(&hello.restriction)?, convert::digests(&hello.policies)?);
    let break_glass = convert::break_glass(&hello.restriction)?;
    // Entered before the first look at the state, so that no change is missed in between.
    let entered = state
        .hub
        .enter(machine, hello.protocol >= PREVIEWS_SINCE)
        .ok_or_else(|| End::Goodbye("the server stops".to_owned()))?;
    let place = place.insert(entered);
    place.heard(now());
    let (system, capabilities) = convert::described(*hello);
    tracing::info!(%machine, %remote, name = system.computer_dns_name, "machine connected");
    state
        .control
        .machine_connected(machine, system, capabilities, reported, remote)
        .await
        .map_err(refused)?;
    line.send(&FromServer::Welcome(Welcome {
        protocol: PROTOCOL_VERSION,
        now: now().ticks(),
        heartbeat_seconds: state.config.heartbeat_seconds,
        reconnect_seconds_max: state.config.reconnect_seconds_max,
    }))
    .await?;
    place.raise(Signals::ORDER);
    place.raise(Signals::POLICIES);
    let mut session = Session {
        line,
        control: &state.control,
        place,
        machine,
        held,
        answered: None,
        repeat_after: Duration::from_secs(state.config.heartbeat_seconds.into()),
        break_glass: None,
    };
    // Before the order: a use may have ended what it wants.
    session.take_break_glass(break_glass).await?;
    session.run().await
}

fn require_version(hello: &Hello) -> Result<(), End> {
    if (1..=PROTOCOL_VERSION).contains(&hello.protocol) {
        return Ok(());
    }
    Err(End::Goodbye(format!(
        "the agent speaks version {} of the protocol, this server 1 to {PROTOCOL_VERSION}: upgrade the server first",
        hello.protocol
    )))
}

/// What the machine is told when the control plane cannot do it.
#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn refused(error: control_plane::Error) -> End {
    if let control_plane::Error::NotFound { .. } = error {
        return End::Goodbye("this machine is not enrolled with this server: enroll it again".to_owned());
    }
    tracing::error!(error = &error as &dyn std::error::Error, "what a machine sent could not be stored");
    End::Goodbye("the server cannot store anything at the moment".to_owned())
}

/// A connection past its greeting.
struct Session<'a> {
    line: &'a mut Line,
    control: &'a ControlPlane,
    place: &'a Place,
    machine: MachineId,
    /// The policies that the machine holds, as far as we know.
    held: HashSet<Sha256Digest>,
    /// The generation that the machine last sent a receipt of, and when.
    answered: Option<(u64, Instant)>,
    /// How long until an order that has its receipt is sent again because a heartbeat lacks it.
    repeat_after: Duration,
    /// What the machine last reported of break-glass, and when it was taken up.
    break_glass: Option<(ReportedBreakGlass, Instant)>,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<Infallible, End> {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                signals = self.place.signals() => self.look(signals).await?,
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Err(End::Gone("silent for too long".to_owned()));
                    }
                    self.line.send_message(Message::Ping(Bytes::new())).await?;
                }
                frame = self.line.receive() => {
                    heard = Instant::now();
                    self.place.heard(now());
                    if let Some(frame) = frame? {
                        self.take(frame).await?;
                    }
                }
            }
        }
    }

    async fn look(&mut self, signals: Signals) -> Result<(), End> {
        if signals.holds(Signals::REPLACED) {
            return Err(End::Goodbye("the machine has a newer connection".to_owned()));
        }
        if signals.holds(Signals::STOPPING) {
            return Err(End::Goodbye("the server stops".to_owned()));
        }
        if signals.holds(Signals::ORDER) {
            self.answered = None;
            self.offer_order().await?;
        }
        if signals.holds(Signals::POLICIES) {
            self.send_next_policy().await?;
        }
        if signals.holds(Signals::PREVIEW) {
            for (policy, age_max) in self.place.take_previews_wanted() {
                self.ask_for_preview(policy, age_max).await?;
            }
        }
        Ok(())
    }

    /// Asks for an impact preview, once the machine has the policy that it is about.
    async fn ask_for_preview(&mut self, policy: Sha256Digest, age_max: Duration) -> Result<(), End> {
        if !self.held.contains(&policy) {
            match self.control.policy_envelope(policy).await.map_err(refused)? {
                Some(envelope) => self.send_policy(policy, &envelope).await?,
                None => {
                    self.place.preview_failed(policy, "the policy is not there any more".to_owned());
                    return Ok(());
                }
            }
        }
        let (policy, age_seconds_max) = (policy.to_string(), age_max.as_secs());
        self.line.send(&FromServer::Preview { policy, age_seconds_max }).await
    }

    /// Takes what a machine says of a preview that it was asked for; of another one nobody wants to know.
    async fn take_preview(&mut self, report: PreviewReport) -> Result<(), End> {
        let wanted = report.policy.parse().ok().filter(|policy| self.place.is_preview_wanted(*policy));
        let Some(policy) = wanted else { return Ok(()) };
        match report.state {
            PreviewState::Underway { files_done, files_total } => {
                self.place.preview_progressed(policy, files_done, files_total);
            }
            PreviewState::Failed { reason } => {
                self.place.preview_failed(policy, convert::printable(&reason));
            }
            PreviewState::Made(preview) => {
                let preview = convert::impact_preview(preview);
                self.control.impact_preview_store(self.machine, policy, preview).await.map_err(refused)?;
                self.place.preview_made(policy);
            }
        }
        Ok(())
    }

    /// Sends the machine's order, unless the machine has reported it, or has just answered it: a gate that cannot obey
    /// would be asked, and answer, without end.
    async fn offer_order(&mut self) -> Result<(), End> {
        let Some(order) = self.control.order_current(self.machine).await.map_err(refused)? else {
            return Ok(());
        };
        let is_repeat = |(generation, at): (u64, Instant)| {
            generation == order.generation && at.elapsed() < self.repeat_after
        };
        if self.answered.is_some_and(is_repeat) {
            return Ok(());
        }
        if let Some(digest) = order.policy.filter(|digest| !self.held.contains(digest)) {
            match self.control.policy_envelope(digest).await.map_err(refused)? {
                Some(envelope) => self.send_policy(digest, &envelope).await?,
                // The gate refuses the order then, and says so in its receipt.
                None => {
                    tracing::error!(machine = %self.machine, %digest, "an order names a policy that is not there")
                }
            }
        }
        self.line.send(&FromServer::Order { envelope: order.envelope }).await?;
        tracing::debug!(machine = %self.machine, generation = order.generation, "order sent");
        self.control.machine_action_offered(order.action);
        Ok(())
    }

    /// Sends one policy that the machine does not hold. What else is missing waits for the next look, so that an order
    /// gets in between.
    async fn send_next_policy(&mut self) -> Result<(), End> {
        let policies = self.control.policy_envelopes();
        let mut missing = policies.iter().filter(|(digest, _)| !self.held.contains(digest));
        let Some((digest, envelope)) = missing.next() else { return Ok(()) };
        if missing.next().is_some() {
            self.place.raise(Signals::POLICIES);
        }
        self.send_policy(*digest, envelope).await
    }

    async fn send_policy(&mut self, digest: Sha256Digest, envelope: &str) -> Result<(), End> {
        // A policy can be large, and all machines want it at once.
        let turn = self.place.turn_to_send_policy().await;
        self.line.send(&FromServer::Policy { envelope: envelope.to_owned() }).await?;
        drop(turn);
        self.held.insert(digest);
        Ok(())
    }

    async fn take(&mut self, frame: FromAgent) -> Result<(), End> {
        match frame {
            FromAgent::Hello(_) => Err(End::Goodbye("there was a Hello already".to_owned())),
            FromAgent::Heartbeat(heartbeat) => self.take_report(&heartbeat.restriction).await,
            FromAgent::Accepted { generation } => {
                self.control.machine_action_accepted(self.machine, convert::count(generation)?);
                Ok(())
            }
            FromAgent::Receipt { envelope } => self.take_receipt(&envelope).await,
            FromAgent::Executions { batch, events, dropped } => {
                if dropped > 0 {
                    tracing::info!(machine = %self.machine, dropped, "refused executions were lost on the machine");
                }
                let events = events.into_iter().map(convert::execution_event).collect();
                self.control.execution_events_store(self.machine, events, dropped).await.map_err(refused)?;
                self.line.send(&FromServer::ExecutionsStored { batch }).await
            }
            FromAgent::Preview(report) => self.take_preview(*report).await,
            FromAgent::Inventory(summary) => {
                tracing::debug!(
                    machine = %self.machine,
                    complete = summary.complete,
                    files_done = summary.files_done,
                    files_total = summary.files_total,
                    vouched = summary.vouched,
                    modified = summary.modified,
                    unreadable = summary.unreadable,
                    "inventory"
                );
                Ok(())
            }
        }
    }

    /// Takes a heartbeat. A machine that lacks its order is sent it again.
    async fn take_report(&mut self, report: &RestrictionReport) -> Result<(), End> {
        let (reported, break_glass) = (convert::reported(report)?, convert::break_glass(report)?);
        self.control.machine_reported(self.machine, reported).await.map_err(refused)?;
        self.take_break_glass(break_glass).await?;
        self.offer_order().await
    }

    /// Takes up what the machine reports of break-glass when it says something else than before, and now and then: codes
    /// that were shown do not count forever. An older agent reports nothing, and would not understand a statement.
    async fn take_break_glass(&mut self, reported: Option<ReportedBreakGlass>) -> Result<(), End> {
        let Some(reported) = reported else { return Ok(()) };
        let is_known = self
            .break_glass
            .as_ref()
            .is_some_and(|(known, at)| *known == reported && at.elapsed() < BREAK_GLASS_EVERY);
        if is_known {
            return Ok(());
        }
        self.break_glass = Some((reported.clone(), Instant::now()));
        match self.control.break_glass_reported(self.machine, reported).await.map_err(refused)? {
            Some(envelope) => self.line.send(&FromServer::BreakGlass { envelope }).await,
            None => Ok(()),
        }
    }

    async fn take_receipt(&mut self, envelope: &str) -> Result<(), End> {
        match self.control.receipt_accept(self.machine, envelope).await {
            Ok(generation) => {
                self.answered = Some((generation, Instant::now()));
                self.line.send(&FromServer::ReceiptStored { generation }).await
            }
            // Not worth the connection: orders must still get through to the machine.
            Err(control_plane::Error::MachineMisbehaves(why)) => {
                tracing::warn!(machine = %self.machine, why, "receipt refused");
                Ok(())
            }
            Err(error) => Err(refused(error)),
        }
    }
}

/// The socket with its limits.
struct Line {
    socket: WebSocket,
    pace: Pace,
}

impl Line {
    /// The next frame; none for other signs of life. Nothing is lost when the wait is given up.
    async fn receive(&mut self) -> Result<Option<FromAgent>, End> {
        tokio::time::sleep_until(self.pace.ready_at()).await;
        let message = match self.socket.recv().await {
            None => return Err(End::Gone("closed".to_owned())),
            Some(Err(error)) => return Err(End::Gone(error.to_string())),
            Some(Ok(message)) => message,
        };
        match message {
            Message::Text(text) => {
                self.pace.spend(text.len(), Instant::now());
                let frame = decode(text.as_bytes(), FROM_AGENT_BYTES_MAX);
                frame.map(Some).map_err(|error| End::Goodbye(error.to_string()))
            }
            Message::Binary(_) => Err(End::Goodbye("frames are text".to_owned())),
            Message::Ping(payload) | Message::Pong(payload) => {
                self.pace.spend(payload.len(), Instant::now());
                Ok(None)
            }
            Message::Close(_) => Err(End::Gone("closed by the machine".to_owned())),
        }
    }

    async fn send(&mut self, frame: &FromServer) -> Result<(), End> {
        self.send_message(Message::Text(encode(frame).into())).await
    }

    async fn send_message(&mut self, message: Message) -> Result<(), End> {
        match tokio::time::timeout(SEND_TIME_MAX, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Gone(error.to_string())),
            Err(_) => Err(End::Gone("does not read what it is sent".to_owned())),
        }
    }

    /// Says why, and closes. Whether the machine still hears it makes no difference.
    async fn close(&mut self, reason: String) {
        let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        if self.send(&FromServer::Goodbye { reason }).await.is_ok() {
            drop(self.send_message(Message::Close(Some(close))).await);
        }
    }
}
