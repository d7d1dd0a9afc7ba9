//! The running agent: carries out what `agent-core` decides.
//!
//! One thread for the link, the gate and the timers, and one more while packages are scanned. Every connection is a
//! task with channels of one or a few messages, so that nothing queues up here.

mod gate;
mod link;
mod scan;
mod task;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_core::{Agent, Effect, Input, Level, Notice, Timer};
use agent_protocol::{RENEW_PATH, RenewReply, RenewRequest};
use anyhow::{Context as _, Result};
use domain::time::Timestamp;
use reqwest::Url;
use rustls::ClientConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::config::Config;
use crate::credential::Credential;
use crate::run_state::RunState;
use crate::state_dir::StateDir;
use crate::{https, people, tls};
use gate::GateConnection;
use link::LinkConnection;
use scan::{PackageWatch, Scan};
use task::Task;

/// How often the package database is looked at.
const PACKAGES_EVERY: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When this machine is not enrolled, or its credential cannot be used. What goes wrong later is logged and tried again.
pub(crate) fn run(config: Config) -> Result<()> {
    log_to_standard_error(&config)?;
    // Before any other thread starts. Only where somebody runs it as root by hand is there anything to do.
    let _as_owner = StateDir::new(&config.state_dir).as_owner()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Names are looked up, and terminals written to, on other threads; few at a time.
        .max_blocking_threads(4)
        .thread_stack_size(512 * 1024)
        .build()?;
    let result = runtime.block_on(async { Shell::start(config)?.run().await });
    // A scan that was told to stop, and a name that nobody answers for, are not waited for.
    runtime.shutdown_background();
    result
}

fn log_to_standard_error(config: &Config) -> Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_max_level(config.log_level()?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // The journal has the time already.
    let set = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    set.map_err(|error| anyhow::anyhow!("cannot set up the log: {error}"))
}

struct Shell {
    config: Config,
    state: StateDir,
    credential: Credential,
    server: Url,
    tls: Arc<ClientConfig>,
    agent: Agent,
    gate: Option<GateConnection>,
    link: Option<LinkConnection>,
    scan: Option<Scan>,
    renewal: Option<Renewal>,
    timers: BTreeMap<Timer, Instant>,
    /// Inputs that an effect led to at once.
    at_once: Vec<Input>,
    last_problem: Option<String>,
    left: Option<RunState>,
}

/// A request for a fresh certificate under way.
struct Renewal {
    answer: mpsc::Receiver<Result<RenewReply>>,
    _task: Task,
}

impl Shell {
    fn start(config: Config) -> Result<Self> {
        let state = StateDir::new(&config.state_dir);
        let credential = Credential::load(&state)?.context(
            "this machine is not enrolled: run cordon-agent enroll as root, with a token of the server",
        )?;
        let server = https::base_url(&credential.enrollment.agent_url)?;
        let tls = Arc::new(tls::mutual(&credential)?);
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).context("the system has no random numbers")?;
        let (agent, effects) = Agent::start(credential.identity()?, u64::from_ne_bytes(seed));
        tracing::info!(
            machine = %credential.id,
            incarnation = credential.enrollment.incarnation,
            server = %server,
            version = env!("CARGO_PKG_VERSION"),
            "started"
        );
        let at_once = vec![Input::CertificateInUse(credential.validity)];
        let mut shell = Self {
            config,
            state,
            credential,
            server,
            tls,
            agent,
            gate: None,
            link: None,
            scan: None,
            renewal: None,
            timers: BTreeMap::new(),
            at_once,
            last_problem: None,
            left: None,
        };
        shell.carry_out(effects);
        Ok(shell)
    }

    async fn run(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut packages = PackageWatch::new(crate::inventory::inventory(&self.config).watched());
        let mut look = interval(PACKAGES_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(input) = self.at_once.pop() {
                self.handle(input);
            }
            let wants_frames = self.agent.wants_frames();
            let timer = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            let input = tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // Before what arrives, so that a peer that never stops cannot hold it up.
                timer = fired(timer) => {
                    self.timers.remove(&timer);
                    Input::TimerFired(timer)
                }
                input = next(self.gate.as_mut().map(|gate| &mut gate.inputs)) => {
                    input.unwrap_or_else(|| Input::GateLost("its connection ended".to_owned()))
                }
                input = next(self.link.as_mut().map(|link| &mut link.inputs)), if wants_frames => {
                    input.unwrap_or_else(|| Input::LinkLost("its connection ended".to_owned()))
                }
                input = next(self.scan.as_mut().map(|scan| &mut scan.inputs)) => {
                    let crashed = || agent_core::InventoryEnd::Failed("the scan ended without a word".to_owned());
                    input.unwrap_or_else(|| Input::InventoryEnded(crashed()))
                }
                answer = next(self.renewal.as_mut().map(|renewal| &mut renewal.answer)) => self.renewed(answer),
                _ = look.tick() => {
                    if !packages.look() {
                        continue;
                    }
                    Input::PackagesChanged
                }
            };
            self.handle(input);
        }
        tracing::info!("told to end");
        RunState::remove(&self.state);
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        match &input {
            Input::GateLost(_) => self.gate = None,
            Input::LinkLost(_) => self.link = None,
            Input::InventoryEnded(_) => self.scan = None,
            Input::GateConnected
            | Input::GateReplied(_)
            | Input::LinkConnected(_)
            | Input::FrameReceived(_)
            | Input::ServerHeard
            | Input::TimerFired(_)
            | Input::PackagesChanged
            | Input::InventoryProgressed(_)
            | Input::CertificateInUse(_)
            | Input::RenewalFailed(_) => {}
        }
        let effects = self.agent.handle(input, Timestamp::from(SystemTime::now()));
        self.carry_out(effects);
        self.leave_state();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ConnectGate => {
                    self.gate = Some(GateConnection::open(self.config.gate_socket.clone()))
                }
                Effect::DropGate => self.gate = None,
                Effect::AskGate(request) => {
                    if self.gate.as_ref().is_some_and(|gate| !gate.ask(request)) {
                        self.at_once.push(Input::GateLost("it does not read".to_owned()));
                    }
                }
                Effect::ConnectLink => {
                    self.link = Some(LinkConnection::open(self.server.clone(), Arc::clone(&self.tls)));
                }
                Effect::DropLink => self.link = None,
                Effect::Send(frame) => {
                    let sent = self.link.as_ref().is_none_or(|link| link.send(&frame));
                    self.require_sent(sent);
                }
                Effect::Ping => {
                    let sent = self.link.as_ref().is_none_or(LinkConnection::ping);
                    self.require_sent(sent);
                }
                Effect::Arm(timer, after) => {
                    self.timers.insert(timer, Instant::now() + after);
                }
                Effect::StartInventory => self.scan = Some(Scan::start(self.config.clone())),
                Effect::StopInventory => {
                    if let Some(scan) = &self.scan {
                        scan.stop();
                    }
                }
                Effect::Renew => self.renew(),
                Effect::TellPeople(notice) => self.tell_people(notice),
                Effect::Log(Level::Info, text) => tracing::info!("{text}"),
                Effect::Log(Level::Warn, text) => {
                    tracing::warn!("{text}");
                    self.last_problem = Some(text);
                }
            }
        }
    }

    fn require_sent(&mut self, sent: bool) {
        if !sent {
            self.link = None;
            self.at_once.push(Input::LinkLost("the server does not read what it is sent".to_owned()));
        }
    }

    fn tell_people(&self, notice: Notice) {
        if !self.config.notify {
            return;
        }
        let text = match notice {
            Notice::Restricted => self.config.notify_restricted.clone(),
            Notice::Released => self.config.notify_released.clone(),
        };
        drop(tokio::task::spawn_blocking(move || {
            let terminals = people::tell(&text);
            tracing::info!(terminals, "told those who are logged in");
        }));
    }

    fn renew(&mut self) {
        let client = https::client(ClientConfig::clone(&self.tls));
        let request = self.credential.key.certificate_request();
        let server = self.server.clone();
        let (answered, answer) = mpsc::channel(1);
        let task = Task::spawn(async move {
            let ask = async {
                let request = RenewRequest { certificate_request: request? };
                https::post(&client?, &server, RENEW_PATH, &request).await
            };
            // Nobody listens any more when the agent ends.
            drop(answered.send(ask.await).await);
        });
        self.renewal = Some(Renewal { answer, _task: task });
    }

    fn renewed(&mut self, answer: Option<Result<RenewReply>>) -> Input {
        self.renewal = None;
        let take = || -> Result<()> {
            let reply = answer.context("the request ended without a word")??;
            self.credential.renew(&self.state, &reply.certificate)?;
            self.tls = Arc::new(tls::mutual(&self.credential)?);
            Ok(())
        };
        match take() {
            Ok(()) => {
                tracing::info!("the certificate is renewed");
                Input::CertificateInUse(self.credential.validity)
            }
            Err(error) => Input::RenewalFailed(format!("{error:#}")),
        }
    }

    /// Leaves for other commands how things stand, when that changed.
    fn leave_state(&mut self) {
        let now = RunState::new(self.agent.snapshot(), self.last_problem.clone(), self.left.as_ref());
        if self.left.as_ref() != Some(&now) {
            if let Err(error) = now.save(&self.state) {
                tracing::debug!(%error, "cannot leave the state");
            }
            self.left = Some(now);
        }
    }
}

/// The next message of a channel that may not be there; none at its end.
async fn next<T>(channel: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

async fn fired(timer: Option<(Timer, Instant)>) -> Timer {
    match timer {
        Some((timer, at)) => {
            sleep_until(at).await;
            timer
        }
        None => std::future::pending().await,
    }
}
